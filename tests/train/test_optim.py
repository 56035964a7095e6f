import pytest
import torch

from limbeck.recipe import WSD, Constant, Cosine, Optimizer
from limbeck.train.optim import build_optimizer, lr_factor


def test_cosine_rises_falls_and_ends_at_its_floor():
    schedule = Cosine(warmup=0.1, floor=0.2)
    assert lr_factor(schedule, 0.05) == pytest.approx(0.5)
    assert lr_factor(schedule, 0.1) == pytest.approx(1.0)
    assert lr_factor(schedule, 0.55) == pytest.approx(0.6)
    assert lr_factor(schedule, 1.0) == pytest.approx(0.2)


def test_wsd_is_flat_between_warmup_and_decay():
    schedule = WSD(warmup=0.1, decay=0.2, floor=0.0)
    assert lr_factor(schedule, 0.3) == lr_factor(schedule, 0.79) == 1.0
    assert lr_factor(schedule, 0.9) == pytest.approx(0.5)
    assert lr_factor(schedule, 1.0) == pytest.approx(0.0)


def test_constant_is_constant_after_warmup():
    assert lr_factor(Constant(warmup=0.5), 0.25) == pytest.approx(0.5)
    assert lr_factor(Constant(), 0.0) == 1.0


def test_vectors_are_not_decayed():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(module, Optimizer(weight_decay=0.3))
    decay = {group["weight_decay"]: [p.ndim for p in group["params"]] for group in optimizer.param_groups}
    assert decay == {0.3: [2], 0.0: [1, 1, 1]}
