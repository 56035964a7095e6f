"""The student learns with the weights that its export will store: the same bits, a straight gradient, no trace."""

import json
import warnings

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from transformers import AutoModelForCausalLM

from limbeck.check.recipe import check_recipe
from limbeck.errors import RecipeError, Stopped
from limbeck.export.gguf import write_gguf
from limbeck.losses import Terms
from limbeck.models.artifact import save_artifact
from limbeck.models.card import make_card
from limbeck.models.hf import HfLM, head_of
from limbeck.recipe import Qad
from limbeck.recipe.rules.check import check_static
from limbeck.text.packing import pack
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext
from limbeck.train.parallel import Ranks
from limbeck.train.qad import (
    ENDS,
    add_fake_quant,
    bake,
    fake_quantize,
    remove_fake_quant,
    round_to_grid,
    stored_weights,
)
from limbeck.train.run import Supervision, recompute_activations, train_student
from limbeck.types import LiveTarget, Vocab
from tests import tiny
from tests.export import gguf_models as small
from tests.recipes import tiny_recipe
from tests.train import two_ranks

KINDS = {"q4_0": GGMLQuantizationType.Q4_0, "q8_0": GGMLQuantizationType.Q8_0, "f16": GGMLQuantizationType.F16}
Q4 = Qad(quant="q4_0")


def by_gguf(values: np.ndarray, grid: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of scales beyond float16
        return quants.dequantize(quants.quantize(values, KINDS[grid]), KINDS[grid])


def agrees(values: np.ndarray, grid: str) -> None:
    """The same bits as gguf's, but for the sign of zeros; and once more changes nothing."""
    ours, theirs = round_to_grid(torch.from_numpy(values), grid).numpy(), by_gguf(values, grid)
    np.testing.assert_array_equal(ours, theirs)
    again = np.isfinite(ours).all(-1)
    np.testing.assert_array_equal(round_to_grid(torch.from_numpy(ours[again]), grid).numpy(), ours[again])


# ---- grids: bit for bit what gguf stores -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 3e-7, 1e-4, 0.02, 1.0, 300.0, 4e5])
def test_random_weights(grid, scale):
    values = np.random.default_rng(0).standard_normal((300, 96)).astype(np.float32) * np.float32(scale)
    agrees(values, grid)


@pytest.mark.parametrize("grid", KINDS)
def test_weights_that_were_sixteen_bits(grid):
    """Magnitudes tie, and quotients fall on halves."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 64, generator=generator)
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        agrees(weight.to(dtype).float().numpy(), grid)
    agrees(torch.randint(-9, 10, (500, 64), generator=generator).float().numpy(), grid)


@pytest.mark.parametrize("grid", KINDS)
def test_odd_blocks(grid):
    rows = np.zeros((8, 32), np.float32)
    rows[1, 3] = -1.0  # the largest is negative
    rows[2, [4, 9]] = 2.0, -2.0  # tied: the first counts
    rows[3, [4, 9]] = -2.0, 2.0
    rows[4] = 1e-45  # the smallest float there is: its scale is 0
    rows[5] = np.linspace(-127, 127, 32, dtype=np.float32) / 2
    rows[6] = 65504.0 * 8
    rows[7] = -0.0
    agrees(rows, grid)


@pytest.mark.parametrize("grid", ["q4_0", "q8_0"])
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
        elements=st.one_of(st.floats(-2.0, 2.0, width=32), st.floats(-(2.0**22), 2.0**22, width=32)),
    )
)
def test_any_finite_weights(grid, values):
    agrees(values, grid)


def test_a_scale_beyond_float16_is_as_in_the_export():
    values = np.full((1, 32), 1e6, np.float32)
    assert not np.isfinite(by_gguf(values, "q4_0")).any()
    agrees(values, "q4_0")


def test_rows_that_are_no_blocks():
    with pytest.raises(ValueError, match="rows of 40 are no whole blocks of 32"):
        round_to_grid(torch.zeros(2, 40), "q4_0")


def test_chunks_do_not_matter(monkeypatch):
    weight = torch.randn(2048, 96)
    whole = round_to_grid(weight, "q4_0")
    monkeypatch.setattr("limbeck.train.qad.CHUNK", 32 * 7)
    assert torch.equal(round_to_grid(weight, "q4_0"), whole)
    assert torch.equal(torch.stack([round_to_grid(row, "q4_0") for row in weight]), whole)


# ---- gradients -------------------------------------------------------------------------------------------------------


def rows_and_target(teacher, num=5):
    rows = two_ranks.rows(num)
    batch = pack(rows)
    return pack(rows, LiveTarget.of(teacher.hidden(batch), teacher.head))


@pytest.fixture(scope="module")
def teacher():
    return HfLM.wrap(tiny.build_model("llama", seed=7), tiny.build_tokenizer(), name="teacher")


def loss_and_grads(distiller, batch):
    distiller.zero_grad()
    out = distiller(batch)
    (out.loss / batch.num_supervised).backward()
    return out.loss.item(), {name: param.grad.clone() for name, param in distiller.student.named_parameters()}


def on_the_grid(family: str, quant: str):
    """A model whose weights are grid points, by gguf's own functions."""
    model = tiny.build_model(family)
    with torch.no_grad():
        for stored in stored_weights(model, quant):
            stored.module.weight.copy_(torch.from_numpy(by_gguf(stored.module.weight.numpy(), stored.grid)))
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])  # tied, untied with biases, scaled embeddings
@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
def test_it_computes_with_the_exports_weights(family, quant, teacher):
    """Loss and gradients are those of the model that the export holds, taken at the master weights: what straight
    through means. The master weights and all names stay as they are."""
    terms = Terms(ce_weight=0.3, temperature=2.0)
    batch = rows_and_target(teacher)
    distiller = Distiller(tiny.build_model(family), terms, vocab=Vocab(384))
    before = {name: param.clone() for name, param in distiller.student.named_parameters()}
    plain, _ = loss_and_grads(distiller, batch)
    distiller.quantize(Qad(quant=quant))
    loss, grads = loss_and_grads(distiller, batch)
    expected, oracle = loss_and_grads(Distiller(on_the_grid(family, quant), terms, vocab=Vocab(384)), batch)
    assert loss == expected != plain
    assert grads.keys() == oracle.keys() == before.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, oracle[name], rtol=1e-5, atol=1e-6 * oracle[name].abs().max().item())
        assert torch.equal(dict(distiller.student.named_parameters())[name], before[name])


def test_straight_through_against_double_precision():
    """d/dw of f(grid(w)) with d grid / dw = 1, in float64 by hand."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(8, 64, generator=generator), torch.randn(5, 64, generator=generator)
    param = weight.clone().requires_grad_()
    nn.functional.linear(x, fake_quantize(param, "q4_0")).square().sum().backward()
    points, wide = torch.from_numpy(by_gguf(weight.numpy(), "q4_0")).double(), x.double()
    torch.testing.assert_close(param.grad.double(), 2 * (wide @ points.T).T @ wide, rtol=1e-5, atol=1e-4)


def test_a_tied_head_is_one_weight(teacher):
    """What loss and embedding use is one grid, and both gradients reach the one master weight."""
    distiller = Distiller(tiny.build_model("llama"), Terms(), vocab=Vocab(384))
    distiller.quantize(Q4)
    batch = rows_and_target(teacher)
    _, grads = loss_and_grads(distiller, batch)
    assert [name for name in grads if "lm_head" in name] == []
    seen = torch.zeros(384, dtype=torch.bool)
    seen[batch.ids_T] = True
    grad = grads["model.embed_tokens.weight"]
    assert grad[~seen].abs().sum() > 0 and grad[seen].abs().sum() > 0  # rows never read are learnt through the head


def test_a_student_on_the_grid_is_left_alone(teacher):
    """The plain loss of an already quantized student is its loss under quantization."""
    batch = rows_and_target(teacher)
    distiller = Distiller(on_the_grid("llama", "q4_0"), Terms(), vocab=Vocab(384))
    plain = loss_and_grads(distiller, batch)
    distiller.quantize(Q4)
    under = loss_and_grads(distiller, batch)
    assert plain[0] == under[0]
    assert all(torch.equal(grad, under[1][name]) for name, grad in plain[1].items())


def test_recomputed_activations_see_the_grid_too(teacher):
    """The backward pass computes the blocks again, after the forward is over."""
    batch = rows_and_target(teacher)
    once = Distiller(tiny.build_model("llama"), Terms(), vocab=Vocab(384))
    again = Distiller(tiny.build_model("llama"), Terms(), vocab=Vocab(384))
    recompute_activations(again.student)
    for distiller in (once, again):
        distiller.quantize(Q4)
    one, two = loss_and_grads(once, batch), loss_and_grads(again, batch)
    assert one[0] == two[0]
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, two[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler meets torch's own
def test_a_compiled_layer_sees_the_grid():
    """From the step on at which it begins, although it was compiled before; the grid breaks no graph."""
    model, x = tiny.build_model("llama"), torch.randn(5, 64)
    mlp = model.model.layers[0].mlp
    before = mlp(x)
    mlp.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(mlp(x), before)
    add_fake_quant(model, "q4_0")
    torch.testing.assert_close(mlp(x), type(mlp).forward(mlp, x))
    assert (mlp(x) - before).abs().max() > 1e-3
    mlp(x).sum().backward()
    assert all(param.grad is not None and param.grad.abs().sum() > 0 for param in mlp.parameters())


# ---- which weights ---------------------------------------------------------------------------------------------------


def test_what_is_stored_how():
    grids = {stored.name: stored.grid for stored in stored_weights(tiny.build_model("qwen2"), "q4_0")}
    assert grids.pop("model.embed_tokens") == grids.pop("lm_head") == ENDS["q4_0"] == "q8_0"
    assert set(grids.values()) == {"q4_0"} and len(grids) == 3 * 7


def test_rows_without_blocks_stay_sixteen_bits():
    model = tiny.build_model("llama", intermediate_size=80)
    grids = {stored.name: stored.grid for stored in stored_weights(model, "q4_0")}
    assert [name for name, grid in grids.items() if grid == "f16"] == [
        f"model.layers.{n}.mlp.down_proj" for n in range(3)
    ]


@pytest.mark.parametrize("family", ["gpt2"])
def test_other_families_are_refused(family):
    with pytest.raises(
        RecipeError, match=f"{family}.*keeps matrices outside of its linear layers: .*Allowed are Llama"
    ):
        stored_weights(tiny.build_model(family), "q4_0")


def test_nothing_is_left_behind():
    model = tiny.build_model("gemma2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(3, 40)[None]
    plain = model(ids).logits
    add_fake_quant(model, "q4_0")
    assert not torch.equal(model(ids).logits, plain)
    remove_fake_quant(model)
    assert torch.equal(model(ids).logits, plain)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tiny_llama):
    budget = "train.budget={kind: steps, steps: 6}"
    small = ("train.batch_tokens=60", "train.precision=float32", "train.optimizer.lr=3e-3", "trace.target.kind=full")
    return tiny_recipe(f"teacher.path={tiny_llama}", budget, *small, "train.qad={quant: q4_0, start: 0.5}")


def train(recipe, folder, out, teacher=None, stop_after=None):
    calls, quiet = [], lambda *_: None
    ask = lambda: calls.append(1) or len(calls) == stop_after  # noqa: E731
    job = TrainContext("train", out, 0, Ranks(), quiet, quiet, ask)
    by = Supervision("live" if teacher else "text", Vocab(384), teacher=teacher)
    if stop_after:
        with pytest.raises(Stopped):
            train_student(recipe, two_ranks.rows(), folder, by, job)
    return train_student(recipe, two_ranks.rows(), folder, by, job).model


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop_after", [2, 4])  # before it begins, and after
def test_resuming_is_exact(recipe, teacher, tiny_llama, tmp_path, stop_after):
    whole = train(recipe, tiny_llama, tmp_path / "whole", teacher)
    parts = train(recipe, tiny_llama, tmp_path / "parts", teacher, stop_after=stop_after)
    assert equal(whole, parts)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_it_begins_when_the_recipe_says(recipe, teacher, tiny_llama, tmp_path):
    plain, half, always = tmp_path / "plain", tmp_path / "half", tmp_path / "always"
    train(recipe.override("train.qad=null"), tiny_llama, plain, teacher)
    train(recipe, tiny_llama, half, teacher)
    train(recipe.override("train.qad.start=0"), tiny_llama, always, teacher)
    assert losses(plain)[:3] == losses(half)[:3]
    assert all(a != b for a, b in zip(losses(plain)[3:], losses(half)[3:], strict=True))
    assert losses(always)[0] != losses(plain)[0]


@pytest.mark.parametrize("with_teacher", [True, False])  # the student, and its twin
def test_what_is_saved_is_what_was_trained(recipe, teacher, tiny_llama, tmp_path, with_teacher):
    """Plain weights on the grid: gguf's own functions change none of them, and transformers opens the folder."""
    model = train(recipe, tiny_llama, tmp_path / "run", teacher if with_teacher else None)
    assert all("forward" not in vars(module) for module in model.modules())
    save_artifact(
        tmp_path / "artifact", model, tiny.build_tokenizer(), make_card(recipe, lineage=[]), dtype=torch.float32
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert equal(model, again)
    for stored in stored_weights(again, "q4_0"):
        values = stored.module.weight.detach().numpy()
        np.testing.assert_array_equal(by_gguf(values, stored.grid), values)
    assert head_of(again).weight_VD is again.get_input_embeddings().weight  # still tied


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
def test_the_export_holds_the_weights_that_were_trained(tmp_path, quant):
    """Written as GGUF and read back by transformers: every weight is the student's, to the bit."""
    student = small.build("llama", hidden_size=64, intermediate_size=96)
    bake(student.model, Qad(quant=quant))
    write_gguf(tmp_path, student, quant=quant)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    for (name, ours), theirs in zip(student.model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_checkpoints_hold_master_weights(recipe, teacher, tiny_llama, tmp_path):
    from safetensors.torch import load_file

    model = train(recipe, tiny_llama, tmp_path, teacher)
    master = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(master[name], model.state_dict()[name])
    assert torch.equal(round_to_grid(master[name], "q4_0"), model.state_dict()[name])


def test_settling_twice_is_settling_once():
    model = tiny.build_model("qwen2")
    bake(model, Q4)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bake(model, Q4)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


# ---- rules and check -------------------------------------------------------------------------------------------------


def test_a_start_after_the_last_step(recipe):
    found = {each.where: each.message for each in check_static(recipe.override("train.qad.start=0.95"))}
    assert "is 0.95, after the last of 6 steps" in found["train.qad.start"]
    assert check_static(recipe.override("train.qad.start=0.9")) == []


def checked(recipe, text_jsonl, *overrides):
    source = json.dumps({"kind": "files", "path": str(text_jsonl), "text": "text"})
    return check_recipe(recipe.override(f"data.source={source}", "data.max_length=64", *overrides), estimate=False)


def test_check_tells_of_it(recipe, text_jsonl):
    found = checked(recipe, text_jsonl)
    assert found.problems == []
    assert any("weights of its q4_0 export: 23 matrices, embeddings and head in q8_0" in fact for fact in found.facts)


@pytest.mark.parametrize("kind", ["{kind: prune, layers: 2}", "{kind: pretrained, path: FOLDER}"])
def test_check_refuses_what_cannot_be_exported(recipe, text_jsonl, tiny_folder, kind):
    folder = str(tiny_folder("gpt2"))
    found = checked(recipe, text_jsonl, f"teacher.path={folder}", f"student={kind.replace('FOLDER', folder)}")
    assert [each.where for each in found.problems] == ["train.qad"]
    assert "train.qad is q4_0, but the student (gpt2)" in found.problems[0].message


def test_check_warns_of_rows_without_blocks(recipe, text_jsonl, tiny_folder):
    folder = tiny_folder("llama", intermediate_size=80)
    found = checked(recipe, text_jsonl, f"teacher.path={folder}")
    assert found.problems == []
    assert "3 of 23 matrices" in next(each.message for each in found.warnings if each.where == "train.qad.quant")
