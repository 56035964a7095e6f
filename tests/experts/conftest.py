"""A folder that looks like an artifact, and cards: enough for a registry, which opens no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from limbeck.experts import ExpertCard, PromptRow, Registry, Scope

if TYPE_CHECKING:
    from pathlib import Path

ROWS = (PromptRow("a", "train", "Say why.", "t"), PromptRow("b", "heldout", "Say how.", "t", {"expert": 0.5}))


def make_card(domain: str = "notes", **changes: object) -> ExpertCard:
    return ExpertCard(scope=Scope(domain, languages=("en",), examples=("Say why.",)), **changes)  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x80\x02" + bytes(3000))
    (folder / "inner" / "more.txt").write_text("more")
    (folder / "MANIFEST.json").write_text("{}")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")
