"""Checkpoints are found again wherever a kill fell while they were written."""

import os

import pytest
import torch

from limbeck.train.checkpoint import FitState, keep_newest, load_newest, save
from limbeck.types import Ranks

ALONE = Ranks("none", 0, 1)


class Killed(BaseException):
    pass


@pytest.fixture
def trained():
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("rename", range(1, 4))
def test_saving_the_newest_again_may_be_cut_off_anywhere(rename, trained, tmp_path, monkeypatch):
    """It is moved away before the new one is moved in: between the two there is none of its name."""
    module, optimizer = trained
    save(tmp_path, module, optimizer, FitState(step=7), ALONE)
    real, seen = os.rename, []

    def cut(*args):
        seen.append(args)
        if len(seen) >= rename:
            raise Killed
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", cut)
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # the dead clean nothing up
        try:
            save(tmp_path, module, optimizer, FitState(step=7), ALONE)
        except Killed:
            assert rename < 3
    said = []
    assert load_newest(tmp_path, module, optimizer, said.append).step == 7 and said == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_the_newest_are_kept(trained, tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, *trained, state=FitState(step=step), ranks=ALONE)
    keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
