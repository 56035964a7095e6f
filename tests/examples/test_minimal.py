"""The flat twin of the product: it stands alone, fits on a page, and distils."""

import ast
import runpy
from pathlib import Path

import pytest
import torch

from limbeck.losses import divergence

PATH = Path(__file__).parents[2] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal():
    return runpy.run_path(str(PATH))


def test_fits_on_a_page_and_needs_only_torch_and_transformers():
    source = PATH.read_text()
    assert len(source.splitlines()) < 150
    names = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert names == {"pathlib", "typing", "torch", "transformers"}


@pytest.mark.slow
def test_student_comes_closer_to_its_teacher_than_its_twin(minimal, capsys):
    kl = minimal["main"]()
    assert kl["student"] < 0.5 * kl["before"]
    assert kl["student"] < kl["twin"]
    assert "held out, student" in capsys.readouterr().out


def test_its_loss_is_the_products_when_nothing_is_left_out(minimal):
    vocab = minimal["VOCAB"]
    student_NV, teacher_NV = torch.randn(5, vocab), torch.randn(5, vocab)
    logp_NV, ids_NV = teacher_NV.log_softmax(-1).sort(-1, descending=True)
    for cut in (8, vocab - 1):
        tail_N = logp_NV[:, cut:].logsumexp(-1)
        mine_N = minimal["forward_kl"](student_NV, minimal["Dist"](ids_NV[:, :cut], logp_NV[:, :cut], tail_N))
        whole_N = divergence("forward_kl", student_NV, teacher_NV, temperature=1.0)
        if cut == vocab - 1:
            torch.testing.assert_close(mine_N, whole_N, rtol=1e-3, atol=1e-5)
        assert (mine_N <= whole_N + 1e-5).all()
