from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from limbeck.errors import TeacherError
from limbeck.models.safetensors_header import BITS, read_shapes, weight_files
from tests.models.strangers import DAMAGED, INDICES, damaged

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "a.0.weight": torch.zeros(3, 4),
    "b": torch.zeros(2, dtype=torch.bfloat16),
    "c": torch.zeros(()),
    "d": torch.zeros(0, 5),
}


def test_shapes_are_read_without_the_weights(tmp_path: Path) -> None:
    save_file({**TENSORS, "big": torch.zeros(2**22)}, tmp_path / "a.safetensors", {"format": "pt"})
    tracemalloc.start()
    found = read_shapes(tmp_path / "a.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert found == {"a.0.weight": (3, 4), "b": (2,), "c": (), "d": (0, 5), "big": (2**22,)}


def test_types_are_those_of_the_format(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.int32, torch.float16, torch.uint8, torch.bool, torch.float8_e4m3fn):
        save_file({"a": torch.zeros(8).to(dtype)}, tmp_path / "a.safetensors")
        assert read_shapes(tmp_path / "a.safetensors") == {"a": (8,)}
    assert set(BITS.values()) <= {4, 6, 8, 16, 32, 64}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_a_sentence(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    folder = damaged(tiny_llama, tmp_path / "model", kind)
    with pytest.raises(TeacherError, match=r"model\.safetensors is not opened: .+\. Copy it anew"):
        read_shapes(folder / "model.safetensors")


@given(st.data())
def test_no_change_of_a_head_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes changed: the sizes that are believed are those of the file, or the file is refused."""
    file = tmp_path_factory.getbasetemp() / "changed.safetensors"
    whole = bytearray(save({"a": torch.zeros(3, 4), "b": torch.zeros(6)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        found = read_shapes(file)
    except TeacherError:
        return
    assert all(size <= len(whole) for shape in found.values() for size in shape)


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_stays_in_its_folder(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    folder = damaged(tiny_llama, tmp_path / "inner" / "model", kind)
    with pytest.raises(TeacherError, match="is not opened") as caught:
        weight_files(folder, {})
    assert len(str(caught.value)) < 1000


def test_the_files_are_those_that_transformers_reads(tmp_path: Path) -> None:
    assert weight_files(tmp_path, {}) == []
    for name in ("a.safetensors", "b-1.safetensors"):
        save_file(TENSORS, tmp_path / name)
    index = {"weight_map": {"x": "b-1.safetensors", "y": "a.safetensors", "z": "a.safetensors"}, "metadata": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path, {}) == [tmp_path / "a.safetensors", tmp_path / "b-1.safetensors"]
    assert weight_files(tmp_path, {"transformers_weights": "a.safetensors"}) == [tmp_path / "a.safetensors"]
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert weight_files(tmp_path, {}) == [tmp_path / "model.safetensors"]
    for name in ("../a.safetensors", "/a.safetensors", 3, "a.bin", "b.safetensors"):
        with pytest.raises(TeacherError, match="is not opened"):
            weight_files(tmp_path, {"transformers_weights": name})
