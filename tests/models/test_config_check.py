from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from limbeck.errors import TeacherError
from limbeck.models.config_check import check_config
from tests import tiny
from tests.models.strangers import DAMAGED, INDICES, LYING, damaged

if TYPE_CHECKING:
    from pathlib import Path

BY_BUILDING = {"larger than its weights", "less than nothing", "text for a number", "no head"}
"""What only a model that was built shows."""


@pytest.mark.parametrize("kind", [*DAMAGED, *INDICES, *(kind for kind in LYING if kind not in BY_BUILDING)])
def test_what_lies_is_refused_before_anything_is_built(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    folder = damaged(tiny_llama, tmp_path / "model", kind)
    begun = time.process_time()
    with pytest.raises(TeacherError, match=r"is not (opened|believed): .+ (may be crafted|Copy)"):
        check_config(folder)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_configs_of_real_families_are_believed(family: str, tiny_folder) -> None:
    found = check_config(tiny_folder(family))
    assert found is not None and found.layers in (3, 4) and found.largest == tiny.VOCAB
    assert found.elements * 4 <= found.num_bytes


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "[]", "3", "", "{", '{"a": ' * 70 + "1" + "}" * 70, '{"num_hidden_layers": ' + "9" * 5000 + "}"],
)
def test_json_that_is_no_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TeacherError, match=r"not opened|nests deeper"):
        check_config(tmp_path)


def test_json_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert check_config(tmp_path) is None
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**29)  # without taking room on the disk
    with pytest.raises(TeacherError, match="536870912 bytes"):
        check_config(tmp_path)


def test_large_models_are_not_taken_for_lies(tmp_path: Path) -> None:
    """Numbers of published configs that are large and size nothing, or are small beside a vocabulary."""
    config = {
        "vocab_size": 65_000, "num_hidden_layers": 94, "num_experts": 512, "hidden_size": 8192,
        "max_position_embeddings": 10_485_760, "bos_token_id": 128_000, "eos_token_id": [151_643, 151_645],
        "rope_scaling": {"original_max_position_embeddings": 131_072}, "sliding_window": 2**31 - 1,
        "image_token_id": 262_144, "max_window_layers": 94, "n_params": 70_553_706_496, "layer_types": ["full"] * 94,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check_config(tmp_path) is None
