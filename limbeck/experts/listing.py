"""What a registry holds, as data to show. No model is opened, and torch is not imported."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.experts.registry import Expert, Registry


def list_experts(registry: Registry) -> dict[str, Any]:
    """Every intact version, newest first within a name, and what is damaged with its reason. Raises ExpertError."""
    experts, damaged = registry.experts(every=True), registry.damaged()
    return {"registry": str(registry.path), "experts": [_line(one) for one in experts], "damaged": damaged}


def _line(expert: Expert) -> dict[str, Any]:
    card = expert.card
    keys = ("format", "quant", "parameters", "bytes", "quality", "scores", "tokens_per_second")
    return {
        "name": expert.name,
        "version": expert.version,
        "domain": card.scope.domain,
        **{key: getattr(card, key) for key in keys},
    }


def show_expert(registry: Registry, name: str, version: str | None) -> dict[str, Any]:
    """All that is known of one. Raises ExpertError."""
    expert = registry.expert(name, version)
    splits = Counter(row.split for row in expert.prompts())
    return {"name": name, "version": expert.version, "path": str(expert.path), "prompts": dict(splits)} | asdict(
        expert.card
    )
