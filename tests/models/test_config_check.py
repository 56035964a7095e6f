from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING

import pytest

from limbeck.errors import TeacherError
from limbeck.models.config_check import check_config, refuse_excess
from limbeck.models.gguf_header import read_header
from tests import tiny
from tests.models.strangers import DAMAGED, INDICES, LYING, damaged
from tests.models.test_gguf_header import ARCH, gguf, pair, tensor

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
        "vocab_size": 262_144, "num_hidden_layers": 94, "num_experts": 512, "hidden_size": 8192,
        "max_position_embeddings": 10_485_760, "bos_token_id": 128_000, "eos_token_id": [151_643, 151_645],
        "rope_scaling": {"original_max_position_embeddings": 131_072}, "sliding_window": 2**31 - 1,
        "image_token_id": 262_144, "max_window_layers": 94, "n_params": 70_553_706_496, "layer_types": ["full"] * 94,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check_config(tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("block_count", 2, ""),
        ("block_count", 0, "is 0"),
        ("block_count", 3, "its num_hidden_layers is 3, and its weights have 2"),
        ("block_count", 10**9, "its num_hidden_layers is 1000000000"),
        ("embedding_length", 10**6, "its hidden_size is 1000000"),
        ("expert_count", 2**30, "its num_experts is 1073741824"),
    ],
)
def test_the_metadata_of_gguf_is_a_config(key: str, value: int, match: str, tmp_path: Path) -> None:
    file, pairs = tmp_path / "a.gguf", [ARCH, pair(f"llama.{key}", 4, struct.pack("<I", value))]
    names = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight")
    tensors = [tensor(name, [32, 2], 8, 96 * number) for number, name in enumerate(names)]
    file.write_bytes(gguf(pairs, tensors, 300))
    if not match:
        return refuse_excess(file, read_header(file))
    with pytest.raises(TeacherError, match=f"is not believed: .*{match}"):
        refuse_excess(file, read_header(file))
