"""What a machine has, and where there is a GPU (a stand-in for one)."""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.serve.settings import load_serving
from limbeck.system import device


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert device.total_memory() == pytest.approx(pages * page, rel=0.05)
    before = device.taken_memory()
    held = mmap.mmap(-1, 2**26)  # of its own: what the heap hands out may have been this process's before
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    assert 0.8 * len(held) < device.taken_memory() - before < 2 * len(held)


def test_memory_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    assert device.total_memory() == 80 * 2**30 and device.taken_memory() == 2**30


@pytest.mark.parametrize(
    ("words", "memory", "found"),
    [
        ([], 64 * 2**30, (32 * 2**30, 4 * 2**30)),
        ([], None, (None, 2**30)),
        (["memory_budget=8G"], None, (8 * 2**30, 2**30)),
        (["memory_budget=8G", "sequence_memory=512M"], 2**40, (8 * 2**30, 2**29)),
    ],
)
def test_what_a_server_may_take_of_it(words: list[str], memory: int | None, found: tuple[int | None, int]) -> None:
    assert load_serving(None, words).bytes_of(memory) == found


def test_sequences_that_leave_no_room() -> None:
    with pytest.raises(RecipeError, match=r"sequence_memory is 2G.*memory_budget of 1\.0 GiB. Lower the one or raise"):
        load_serving(None, ["memory_budget=1G", "sequence_memory=2G"])
