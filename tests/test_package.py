"""`import limbeck` is light; its names load on first use."""

import subprocess
import sys

import pytest
import torch

import limbeck
from limbeck.recipe import Recipe
from limbeck.types import Dist, Head, LiveTarget

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "pandas")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import limbeck",
        "import limbeck; limbeck.Recipe",
        "import limbeck; limbeck.Dist, limbeck.LiveTarget",
        "import limbeck.recipe.recipe, limbeck.recipe.rules.check",
        "import limbeck.cli.app",
    ],
)
def test_light_imports(statement):
    assert not loaded_by(statement) & set(HEAVY)


def test_names():
    assert limbeck.Recipe is Recipe
    assert limbeck.__version__.count(".") == 2
    assert {"Recipe", "check_recipe", "run_recipe", "open_lm"} <= set(dir(limbeck))
    assert limbeck.losses.__name__ == "limbeck.losses"
    assert limbeck.Dist is Dist and limbeck.LiveTarget is LiveTarget
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        limbeck.nonsense  # noqa: B018


def test_a_live_target_is_hidden_rows_and_a_head():
    hidden_ND, weight_VD, bias_V = torch.randn(3, 4), torch.randn(9, 4), torch.randn(9)
    target = LiveTarget(hidden_ND, weight_VD, bias_V=bias_V, softcap=5.0, logit_scale=0.5)
    assert target.head == Head(weight_VD, bias_V, 5.0, 0.5)
    again = LiveTarget.of(hidden_ND, target.head)
    assert all(getattr(again, name) is getattr(target, name) for name in ("hidden_ND", "weight_VD", "bias_V"))
    assert (again.softcap, again.logit_scale) == (5.0, 0.5)
    assert torch.equal(target[1:].hidden_ND, hidden_ND[1:]) and target[1:].weight_VD is weight_VD


def test_the_loss_in_somebody_elses_loop():
    """The public names, with each of the head's settings, against the plain reference."""
    torch.manual_seed(0)
    hidden_ND, weight_VD, bias_V = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    teacher_ND, teacher_VD = torch.randn(5, 6), torch.randn(9, 6)
    target = limbeck.LiveTarget(teacher_ND, teacher_VD, softcap=5.0, logit_scale=0.5)
    loss = limbeck.losses.fused_distill_loss(
        hidden_ND, weight_VD, target, divergence="jsd", temperature=2.0, bias_V=bias_V, beta=0.1
    )
    u_NV = 5.0 * torch.tanh(0.5 * teacher_ND @ teacher_VD.T / 5.0)
    z_NV = hidden_ND @ weight_VD.T + bias_V
    want_N = limbeck.losses.divergence("jsd", z_NV, u_NV, temperature=2.0, beta=0.1)
    torch.testing.assert_close(loss, want_N.sum())


def test_verbs_are_functions_whose_names_no_room_hides():
    from limbeck.check.recipe import check_recipe

    assert limbeck.check_recipe is check_recipe
    assert callable(limbeck.open_lm)
