"""Statements of docs/reference/correctness.md that are about more than one room."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.label.local import run_label
from limbeck.losses import Terms, fused_distill_loss
from limbeck.models.hf import HfLM
from limbeck.recipe import StepsBudget, Train
from limbeck.text.packing import pack
from limbeck.train import sources
from limbeck.train.distiller import Distiller
from limbeck.train.step import train_step
from limbeck.types import Batch, Callbacks, Cursor, Head, LiveTarget, LossOut, Ranks, Row, Vocab
from tests.recipes import tiny_recipe
from tests.train import two_ranks


def on_logits(z_NV):
    """A head that hands logits through."""
    return z_NV, torch.eye(z_NV.shape[1])


# ---- 3 and 4: means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [2, 7, 1000])
@pytest.mark.parametrize("num", [1, 5, 300])
def test_equal_divergences_are_their_own_mean(num, vocab):
    """Statement 3: tokens of no probability and more rows change nothing."""
    z_NV, u_NV = torch.full((2, num, vocab), -1e4).unbind()
    z_NV[:, :2], u_NV[:, :2] = torch.tensor([0.0, 0.0]), torch.tensor([0.9, 0.1]).log()
    loss = fused_distill_loss(*on_logits(z_NV), LiveTarget.of(*_side(u_NV)))
    assert float(loss) / num == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5), rel=1e-5)


def _side(u_NV):
    hidden_ND, weight_VD = on_logits(u_NV)
    return hidden_ND, Head(weight_VD)


class _Given(nn.Module):
    """A student whose positions have the divergences that their labels say, times its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch) -> LossOut:
        sum_ = batch.labels_N.double().sum()
        return LossOut(self.weight * sum_, {"ce": sum_}, batch.num_supervised)


def test_the_loop_divides_once_by_all_positions():
    """Statement 4, the worked case: divergences {1} and {3, 3, 3} are 2.5 on average, not 2, however they are cut."""
    rows = [
        Row(str(n), "train", "", "", np.array([0, *values], np.int32), ((1, len(values) + 1),), "")
        for n, values in enumerate(([1], [3, 3, 3]))
    ]
    for batch_tokens, accumulate in ((4, 2), (6, 1)):
        student = _Given()
        plan = sources.EpochPlan(rows, batch_tokens, 0)
        assert len(plan.plan(0)) == accumulate
        settings = Train(budget=StepsBudget(steps=1), batch_tokens=batch_tokens, accumulate=accumulate, clip=None)
        source = sources.RowSource(rows, plan, sources.plain(torch.device("cpu")))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        values = train_step(student, optimizer, source.draw(Cursor(), accumulate, Ranks()), settings, Ranks())
        assert student.weight.grad is not None
        assert values["loss"] == pytest.approx(2.5) == float(student.weight.grad)


# ---- 10 and 12: positions --------------------------------------------------------------------------------------------


def test_the_process_that_wrote_the_text_is_best_at_shift_zero():
    """Statement 10, on a chain whose next token depends on the current one: both cross-entropy and KL."""
    vocab, rng = 12, np.random.default_rng(0)
    chain_VV = rng.dirichlet(np.full(vocab, 0.3), vocab)
    rows = []
    for number in range(8):
        ids = [int(rng.integers(vocab))]
        while len(ids) < 60:
            ids.append(int(rng.choice(vocab, p=chain_VV[ids[-1]])))
        rows.append(Row(str(number), "train", "", "", np.array(ids, np.int32), ((3, 58),), ""))
    batch = pack(rows)
    head = Head(torch.from_numpy(chain_VV).clamp_min(1e-9).log().float().T.contiguous())
    known_TV = nn.functional.one_hot(batch.ids_T, vocab).float()
    target = LiveTarget.of(known_TV[batch.rows_N], head)
    losses = {}
    for by in (-2, -1, 0, 1, 2):
        hidden_ND = known_TV[batch.rows_N + by]
        kl = fused_distill_loss(hidden_ND, head.weight_VD, target)
        ce = fused_distill_loss(hidden_ND, head.weight_VD, None, labels_N=batch.labels_N, ce_weight=1.0)
        losses[by] = (float(kl) / len(hidden_ND), float(ce) / len(hidden_ND))
    assert losses[0][0] == pytest.approx(0.0, abs=1e-6)
    for by in (-2, -1, 1, 2):
        assert losses[by][0] > 0.5
        assert losses[by][1] > losses[0][1] + 0.5


def test_what_is_not_supervised_has_no_gradient_and_no_influence(tiny_model):
    """Statement 12: tokens behind the last span and rows of hidden states outside the spans."""
    student = Distiller(tiny_model("qwen2"), Terms(ce_weight=1.0), vocab=Vocab(384))
    rows = [replace(row, spans=((2, 3), (4, 6))) for row in two_ranks.rows(6) if len(row.ids) > 8]
    kept = []

    def keep(_module, _args, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    student.student.get_decoder().register_forward_hook(keep)
    results = []
    for ids_of in (lambda ids: ids, lambda ids: np.append(ids[:6], (ids[6:] + 1) % 384).astype(np.int32)):
        student.zero_grad()
        out = student(pack([replace(row, ids=ids_of(row.ids)) for row in rows]))
        out.loss.backward()
        results.append((out.loss.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])[:-1]
    told = sorted(int(start) + at for start in starts for at in (1, 3, 4))  # tokens 2, 4 and 5
    for hidden_1TD in kept:
        assert hidden_1TD.grad[0].abs().sum(1).nonzero()[:, 0].tolist() == told
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=0)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(one.abs().max()))


# ---- 14 and 18: stored targets ---------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny_model, tiny_tokenizer):
    return HfLM.wrap(tiny_model("llama", seed=7), tiny_tokenizer, name="teacher")


def labelled(teacher, rows, path, *overrides):
    quiet = Callbacks(lambda _: None, lambda _: None, lambda: False)
    return run_label(tiny_recipe(*overrides), path, teacher, rows, quiet)


def own_probabilities(teacher, item):
    with torch.no_grad():
        z_TV = teacher.model(torch.from_numpy(item.ids.astype(np.int64))[None]).logits[0]
    return torch.softmax(z_TV[[j - 1 for start, end in item.spans for j in range(start, end)]], 1)


def off(dist, p_NV):
    """Mean over positions of the differences on the support."""
    p_NK = p_NV.gather(1, dist.ids_NK.clamp_min(0))
    return float(((dist.logp_NK.exp() - p_NK).abs() * (dist.ids_NK >= 0)).sum(1).mean())


def test_shuffled_rows_keep_their_own_targets(teacher, tmp_path):
    """Statement 14: through the order of training, against the teacher on each document alone."""
    store = labelled(
        teacher, two_ranks.rows(12), tmp_path, "trace.target.kind=top_k", "trace.target.k=8", "trace.shard_tokens=40"
    )
    traces = store.traces()
    packed = sources.stored(store, torch.device("cpu"))
    plan = sources.EpochPlan(traces, 40, seed=3).plan(0)
    assert len(plan) > 2
    assert [index for batch in plan for index in batch] != list(range(len(traces)))
    for indices in plan:
        batch = packed([traces[index] for index in indices])
        truth_NV = torch.cat([own_probabilities(teacher, traces[index]) for index in indices])
        assert off(batch.target, truth_NV) < 0.05
        assert off(batch.target, truth_NV.roll(1, 0)) > 0.1


def test_what_is_stored_of_sampled_replies_is_the_teacher_itself(teacher, tmp_path):
    """Statement 18: replies drawn at T = 0.5 and top-p 0.8, distributions at T = 1 with nothing cut off."""
    prompts = [replace(row, ids=row.ids[:4], spans=()) for row in two_ranks.rows(4)]
    mode = [f"trace.mode.{key}" for key in ("kind=generate", "temperature=0.5", "top_p=0.8", "max_tokens=8")]
    store = labelled(teacher, prompts, tmp_path, *mode, "trace.target.kind=top_k", "trace.target.k=64")
    for trace in store.traces():
        dist, truth_NV = store.dist(trace), own_probabilities(teacher, trace)
        assert off(dist, truth_NV) < 0.05
        assert off(dist, (truth_NV**2) / (truth_NV**2).sum(1, keepdim=True)) > 0.1
        torch.testing.assert_close(dist.logp_NK.exp().sum(1) + dist.tail_N.exp(), torch.ones(len(truth_NV)))


# ---- 23: modes -------------------------------------------------------------------------------------------------------


def test_a_teacher_at_work_leaves_the_student_in_train_mode(teacher, tiny_model):
    student = Distiller(tiny_model("gpt2"), Terms(), vocab=Vocab(384))
    rows = two_ranks.rows(3)
    student(sources.live(teacher, Vocab(384))(rows)).loss.backward()
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.model.modules())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
