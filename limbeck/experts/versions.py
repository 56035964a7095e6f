"""Names and versions of experts: they become folders, so nothing else is let through."""

from __future__ import annotations

import re

from limbeck.errors import ExpertError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)
"""Semantic Versioning 2.0.0 (semver.org), numbers of at most nine digits."""

LONGEST_VERSION = 64
FIRST = "1.0.0"


def check_name(name: str) -> str:
    """The name itself. Raises ExpertError for any other than a-z, 0-9, '.', '_', '-'; at most 64 characters."""
    if not NAME.fullmatch(name):
        raise ExpertError(
            f"{name[:80]!r} is no name of an expert; allowed are a-z, 0-9, '.', '_' and '-', at most 64 characters, "
            "the first a letter or digit, such as code-helper."
        )
    return name


def check_version(version: str) -> str:
    """The version itself. Raises ExpertError unless it is a semantic version of at most 64 characters."""
    if len(version) > LONGEST_VERSION or not VERSION.fullmatch(version):
        raise ExpertError(
            f"{version[:80]!r} is no version; allowed are semantic versions of at most {LONGEST_VERSION} characters, "
            "such as 1.0.0 or 1.2.0-rc.1."
        )
    return version


def precedence(version: str) -> tuple[object, ...]:
    """What versions are sorted by: precedence as in semver.org, point 11; build metadata last, so that no two are
    equal."""
    found = VERSION.fullmatch(version)
    assert found is not None, version
    numbers = tuple(int(part) for part in found.groups()[:3])
    before = found[4]
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in (before or "").split(".") if part)
    return (numbers, before is None, parts, found[5] or "")


def following(version: str) -> str:
    """The next minor version."""
    major, minor, _ = re.split(r"[.+-]", version)[:3]
    return f"{major}.{int(minor) + 1}.0"
