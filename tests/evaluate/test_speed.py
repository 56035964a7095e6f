"""Sizes are exact, rates are plausible, and models take turns."""

import pytest
import torch

from limbeck.evaluate import speed
from limbeck.evaluate.speed import ROUNDS, measure_speed, stored_bytes
from limbeck.models.hf import HfLM


@pytest.mark.slow
def test_models_take_turns(teacher, students, text_rows, monkeypatch):
    order, real = [], speed._score
    monkeypatch.setattr(speed, "_score", lambda lm, batch: order.append(lm.name) or real(lm, batch))
    found = measure_speed({"teacher": teacher, **students}, text_rows, seconds=0.0)
    assert order[-3 * ROUNDS :] == ["teacher", "student", "twin"] * ROUNDS
    for name, each in found.items():
        assert each.rounds == ROUNDS and each.tokens_per_second > 0, name
        assert each.memory_bytes >= each.parameters * 4


@pytest.mark.slow
def test_tied_parameters_are_counted_once_and_bytes_are_those_on_disk(tiny_llama, text_rows):
    lm = HfLM.open(tiny_llama, dtype="float32")
    found = measure_speed({"teacher": lm}, text_rows[:1], seconds=0.0)["teacher"]
    assert found.parameters == sum(p.numel() for p in {id(p): p for p in lm.model.parameters()}.values())
    assert found.bytes == (tiny_llama / "model.safetensors").stat().st_size
    wide = HfLM.open(tiny_llama, dtype="bfloat16")
    assert stored_bytes(wide) == found.bytes  # as stored, not as opened


def test_bytes_without_files_are_those_in_memory(teacher):
    assert stored_bytes(teacher) == sum(p.numel() * 4 for p in teacher.model.parameters())
    assert teacher.dtype == torch.float32


@pytest.mark.slow
def test_batch_fits_the_limit(teacher, text_rows, monkeypatch):
    sizes = []
    real = speed._score
    monkeypatch.setattr(speed, "_score", lambda lm, batch: sizes.append(len(batch.ids_T)) or real(lm, batch))
    measure_speed({"teacher": teacher}, text_rows, batch_tokens=64, seconds=0.0)
    assert max(sizes) <= max(64, len(text_rows[0].ids))
