"""What a verifier says of a reply."""

from __future__ import annotations

from typing import NamedTuple

REFERENCE = "the reference"


class Verdict(NamedTuple):
    """`ok` is None where it could not be said: that is not the same as wrong."""

    ok: bool | None
    reason: str

    @property
    def blames_reference(self) -> bool:
        """Whether the row's reference is at fault: it says so of every reply to the row."""
        return self.ok is None and self.reason.startswith(REFERENCE)


def unreadable(reference: str, why: str) -> Verdict:
    return Verdict(None, f"{REFERENCE} {shorten(reference)} {why}")


def shorten(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:77]}...")
