"""What a recipe may not say of captured traffic."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from limbeck.config.problems import problem
from limbeck.recipe.data import CapturedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config.problems import Problem
    from limbeck.recipe.recipe import Recipe


def captured_rules(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions of `data.source: {kind: captured}`."""
    source = recipe.data.source
    if not isinstance(source, CapturedSource):
        return
    for name in sorted(set(source.models) & set(source.exclude_models)):
        yield problem("data.source.exclude_models", f"names {name!r}, which `models` asks for; keep one of them.")
    for tag in source.tags:
        if not tag.partition("=")[0] or "=" not in tag:
            yield problem("data.source.tags", f"has {tag!r}; each must be NAME=VALUE, such as app=helpdesk.")
    times = {}
    for name in ("since", "until"):
        text = getattr(source, name)
        try:
            times[name] = datetime.fromisoformat(text) if text else None
        except ValueError:
            yield problem(f"data.source.{name}", f"is {text!r}; it must be a time such as 2026-11-25T08:00+00:00.")
    since, until = times.get("since"), times.get("until")
    if since and until and since.replace(tzinfo=None) >= until.replace(tzinfo=None) and since.tzinfo == until.tzinfo:
        yield problem("data.source.until", f"is {source.until}, not after `since` ({source.since}).")
    if source.reasoning == "think" and recipe.trace.mode.kind == "generate":
        yield problem("data.source.reasoning", "has no effect where the teacher writes the replies; remove it.")
