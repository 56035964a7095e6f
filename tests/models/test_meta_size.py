from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from limbeck.errors import LimbeckError, TeacherError
from limbeck.models import meta_size
from limbeck.models.meta_size import refuse_lies, refuse_oversized
from limbeck.models.open import open_lm
from tests import tiny
from tests.models.strangers import DAMAGED, INDICES, LYING, damaged

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", [*DAMAGED, *LYING, *INDICES])
def test_nothing_of_a_stranger_takes_time_or_memory(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    folder = damaged(tiny_llama, tmp_path / "model", kind)
    begun, before = time.process_time(), psutil.Process().memory_info().rss
    with pytest.raises(LimbeckError) as caught:
        open_lm(folder, dtype="float32")
    assert time.process_time() - begun < 3 and psutil.Process().memory_info().rss - before < 2**28
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_models_are_as_large_as_their_weights(family: str, tiny_folder) -> None:
    refuse_oversized(tiny_folder(family))
    assert torch.get_default_dtype() == torch.float32


def test_what_is_made_beside_the_weights_is_counted(tmp_path: Path, tiny_folder) -> None:
    folder = damaged(tiny_folder("gpt2"), tmp_path / "model", "layers without weights")
    with pytest.raises(TeacherError):
        refuse_oversized(folder)


def test_a_model_of_the_hub_is_held_to_the_same_bounds(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = damaged(tiny_llama, tmp_path / "model", "10**9 layers")
    monkeypatch.setattr(meta_size, "hf_hub_download", lambda repo, file: str(folder / file))
    with pytest.raises(TeacherError, match="num_hidden_layers is 1000000000"):
        refuse_lies("org/name")
    (folder / "model.safetensors").unlink()  # it is not fetched yet
    with pytest.raises(TeacherError, match="at most 1024 are built"):
        refuse_lies("org/name")
