"""Statements about whole models: packed, masked, divided, taught."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from limbeck.losses.terms import Terms
from limbeck.models import hf
from limbeck.recipe import StepsBudget, Train
from limbeck.selftest.oracles import (
    StepResult,
    change,
    fused,
    gradient_error,
    own_attention,
    plain_loss,
    predicting,
    snapshot,
)
from limbeck.selftest.pair import Measure, Pair
from limbeck.text.packing import pack
from limbeck.text.tokenizer import compare_tokenizers
from limbeck.train import sources
from limbeck.train.step import train_step
from limbeck.types import Batch, Cursor, LiveTarget, Ranks, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SAME = 1e-5  # float32, the same sum in another order
CLOSE = 1e-4  # float32, another kernel
ROUNDED = 0.1  # a teacher in half precision on another packing
NOISE = 0.1


def _close(pair: Pair) -> float:
    return CLOSE if pair.exact else ROUNDED


# ---- the teacher -----------------------------------------------------------------------------------------------------


def teacher_matters(pair: Pair) -> Iterator[Measure]:
    """Another teacher gives another gradient."""
    target = pair.live_batch.target
    assert isinstance(target, LiveTarget)
    noise_ND = torch.randn(target.hidden_ND.shape, generator=torch.Generator().manual_seed(0))
    shaken_ND = target.hidden_ND + NOISE * target.hidden_ND.std() * noise_ND.to(target.hidden_ND)
    other = pair.step(replace(pair.live_batch, target=LiveTarget.of(shaken_ND, target.head)), pair.terms)
    yield Measure("change of the gradient, live", change(other.grads, pair.packed_step.grads), low=1e-3)
    dist = pair.top_k.dists(pair.top_k.traces()).to(pair.teacher.device)[: len(pair.labels)]
    flipped = replace(dist, ids_NK=dist.ids_NK.flip(0), logp_NK=dist.logp_NK.flip(0), tail_N=dist.tail_N.flip(0))
    one, two = (fused(pair.side, each, Terms(), pair.labels).hidden_ND for each in (dist, flipped))
    yield Measure("change of the gradient, stored", float((one - two).norm() / one.norm()), low=1e-3)


def teacher_untouched(pair: Pair) -> Iterator[Measure]:
    """The teacher is in eval mode, says the same twice, and gets no gradient."""
    yield Measure("modules in train mode", sum(module.training for module in pair.teacher.model.modules()), 0)
    batch = pack(pair.rows, device=pair.teacher.device)
    one_ND, two_ND = pair.teacher.hidden(batch), pair.teacher.hidden(batch)
    yield Measure("difference of two passes", float((one_ND - two_ND).abs().max()), 0)
    if pair.apart is None:
        hidden_ND = pair.live.hidden_ND.clone().requires_grad_()
        weight_VD = pair.live.head.weight_VD.detach().requires_grad_()
        target = LiveTarget.of(hidden_ND, replace(pair.live.head, weight_VD=weight_VD))
        fused(pair.side, target, Terms(), pair.labels)
        reached = [hidden_ND.grad is not None, weight_VD.grad is not None]
        out = pair.forward(sources.live(pair.teacher, pair.columns)(pair.rows), pair.terms)
        out.loss.backward()
        reached += [parameter.grad is not None for parameter in pair.teacher.model.parameters()]
        yield Measure("tensors of the teacher with a gradient", sum(reached), 0)


# ---- positions -------------------------------------------------------------------------------------------------------


def masked(pair: Pair) -> Iterator[Measure]:
    """What is not supervised has no gradient and no influence as a label; what is supervised has, end tokens too."""
    grads_TD = _hidden_gradient(pair)
    found = set(grads_TD.abs().sum(1).nonzero()[:, 0].tolist())
    starts = np.cumsum([0, *(len(row.ids) for row in pair.rows)])
    wanted = {int(start) + at for start, ats in zip(starts, predicting(pair.rows), strict=False) for at in ats}
    yield Measure("positions outside the spans with a gradient", len(found - wanted), 0)
    yield Measure("supervised positions without", len(wanted - found), 0)
    yield Measure("positions counted beside them", abs(_counted(pair) - len(wanted)), 0)
    edited = pair.forward(replace(_with_edited_ends(pair), target=pair.live_batch.target), pair.terms)
    plain = pair.forward(pair.live_batch, pair.terms)
    yield Measure("change by tokens after the last span", abs(float((edited.loss - plain.loss).detach())), 1e-6)


def _hidden_gradient(pair: Pair) -> Tensor:
    """The loss's gradient on the last hidden row of every token of the packed batch."""
    kept: list[Tensor] = []

    def keep(_module: object, _args: object, output: object) -> None:
        hidden: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        hidden.retain_grad()
        kept.append(hidden)

    hook = pair.distiller.student.get_decoder().register_forward_hook(keep)
    try:
        pair.forward(pair.live_batch, pair.terms).loss.backward()
    finally:
        hook.remove()
    grad = kept[0].grad
    return torch.zeros_like(kept[0][0]) if grad is None else grad[0]


def _counted(pair: Pair) -> int:
    """The number that the loop divides by."""
    plan = sources.EpochPlan(pair.rows, sum(len(row.ids) for row in pair.rows), 0)
    source = sources.RowSource(pair.rows, plan, sources.plain(pair.teacher.device))
    return source.draw(Cursor(), source.epoch_batches(0), Ranks()).num_supervised


def _with_edited_ends(pair: Pair) -> Batch:
    """The batch with other tokens after the last supervised one of every document."""
    rows = []
    for row in pair.rows:
        ids = row.ids.copy()
        ids[row.spans[-1][1] :] = (ids[row.spans[-1][1] :] + 1) % pair.vocab
        rows.append(replace(row, ids=ids))
    return pack(rows, device=pair.teacher.device)


def packing(pair: Pair) -> Iterator[Measure]:
    """Packed = each document alone through the model's own code, in loss and gradient; padding changes nothing;
    documents do not see each other."""
    head = _head_name(pair)
    ours, plain = pair.packed_step, pair.plain_step
    yield Measure("loss: packed against single documents", abs(ours.loss - plain.loss) / abs(plain.loss), _close(pair))
    rest = {name: grad for name, grad in plain.grads.items() if name != head}
    yield Measure("gradient: packed against single documents", gradient_error(ours.grads, rest), 10 * _close(pair))
    padded = _padded_loss(pair)
    yield Measure("loss: packed against padded rows", abs(ours.loss - padded) / abs(padded), _close(pair))
    for who, lm in (("teacher", pair.teacher), ("student", pair.student)):
        yield Measure(f"{who}: influence of another document's tokens", _crosstalk(lm, pair.rows), 1e-6)


def _crosstalk(lm: hf.HfLM, rows: Sequence[Row]) -> float:
    """Largest change of the other documents' hidden rows when the first document's tokens change."""
    first = replace(rows[0], ids=(rows[0].ids + 1) % lm.vocab)
    one_ND, two_ND = (lm.hidden(pack([row, *rows[1:]], device=lm.device)).float() for row in (rows[0], first))
    own = rows[0].num_supervised
    return float((one_ND - two_ND)[own:].abs().max() / one_ND.std())


def _padded_loss(pair: Pair) -> float:
    """The loss of the rows as one padded batch, by the models' own forward with an attention mask."""
    width = max(len(row.ids) for row in pair.rows) + 3
    end = pair.teacher.tokenizer.eos_token_id
    ids_BT = torch.full((len(pair.rows), width), end if isinstance(end, int) else 0, device=pair.teacher.device)
    mask_BT = torch.zeros_like(ids_BT)
    for number, row in enumerate(pair.rows):
        ids_BT[number, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
        mask_BT[number, : len(row.ids)] = 1
    sides = []
    for model in (pair.distiller.student, pair.teacher.model):
        with torch.no_grad(), own_attention(model):
            z_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        picked = [z_BTV[number, at, : pair.vocab] for number, at in enumerate(predicting(pair.rows))]
        sides.append(torch.cat(picked).double())
    return float(plain_loss(sides[0], sides[1], pair.terms, pair.live_batch.labels_N).sum())


def _head_name(pair: Pair) -> str:
    weight = hf.head_layer(pair.distiller.student).weight
    return next(name for name, parameter in pair.distiller.student.named_parameters() if parameter is weight)


def head(pair: Pair) -> Iterator[Measure]:
    """The head is trained: its weight gets the gradient that the model's own forward gives it."""
    name = _head_name(pair)
    error = gradient_error(pair.packed_step.grads, {name: pair.plain_step.grads[name]})
    yield Measure(f"error of the gradient of {name}", error, 10 * _close(pair))


# ---- division --------------------------------------------------------------------------------------------------------


def split(pair: Pair) -> Iterator[Measure]:
    """One batch = micro-batches of unequal sizes, divided once by all positions; the same rows twice are the same
    mean."""
    rows, longest = pair.rows, max(len(row.ids) for row in pair.rows)
    tokens = sum(len(row.ids) for row in rows)
    whole, parts = _loop_step(pair, rows, tokens), _loop_step(pair, rows, longest)
    yield Measure("loss: micro-batches against one batch", abs(parts.loss - whole.loss) / abs(whole.loss), SAME)
    yield Measure("gradient: micro-batches against one batch", gradient_error(parts.grads, whole.grads), SAME)
    twice = _loop_step(pair, [*rows, *rows], 2 * tokens)
    yield Measure("loss: every row twice against once", abs(twice.loss - whole.loss) / abs(whole.loss), SAME)
    by_hand = _mean_by_hand(pair)
    yield Measure("loss: against the mean over positions", abs(whole.loss - by_hand) / abs(by_hand), SAME)


def _loop_step(pair: Pair, rows: Sequence[Row], batch_tokens: int) -> StepResult:
    """The mean loss and the gradient of one step of the training loop, from stored targets; no weight moves."""
    by_row = {trace.row_id: trace for trace in pair.top_k.traces()}
    traces = [by_row[row.id] for row in rows]
    plan = sources.EpochPlan(traces, batch_tokens, 0)
    source = sources.RowSource(traces, plan, sources.stored(pair.top_k, pair.teacher.device))
    settings = Train(budget=StepsBudget(steps=1), batch_tokens=batch_tokens, clip=None, precision="float32")
    pair.distiller.terms = pair.stored_terms
    still = torch.optim.SGD(pair.distiller.parameters(), lr=0.0)
    step = source.draw(Cursor(), source.epoch_batches(0), Ranks())
    values = train_step(pair.distiller, still, step, settings, Ranks())
    return StepResult(values["loss"], snapshot(pair.distiller.student))


def _mean_by_hand(pair: Pair) -> float:
    """The sum over single rows through the module, divided by the number of tokens in all spans."""
    total, num = 0.0, 0
    for trace in pair.top_k.traces():
        batch = sources.stored(pair.top_k, pair.teacher.device)([trace])
        with torch.no_grad():
            total += float(pair.forward(batch, pair.stored_terms).loss)
        num += sum(end - start for start, end in trace.spans)
    return total / num


# ---- the pair --------------------------------------------------------------------------------------------------------


def tokenizer(pair: Pair) -> Iterator[Measure]:
    """Ids stand for the same bytes, ends are the same tokens, and what pads the heads is cut."""
    found = compare_tokenizers(pair.teacher.tokenizer, pair.student.tokenizer)
    yield Measure(f"differences: {'; '.join(found)}" if found else "differences", len(found), 0)
    heads = [hf.head_layer(lm.model).weight.shape[0] for lm in (pair.teacher, pair.student)]
    yield Measure(
        f"tokens without a row in the heads of {heads[0]} and {heads[1]}", pair.vocab - min(*heads, pair.vocab), 0
    )
    target = pair.teacher.head
    real = len(pair.teacher.tokenizer)
    yield Measure("padding of the teacher's head that is not cut", max(target.weight_VD.shape[0] - real, 0), 0)
    for name, share in coverage(pair).items() if found else ():
        yield Measure(f"student tokens that are one token of the teacher, {name}", share, low=-math.inf)


def coverage(pair: Pair) -> dict[str, float]:
    """Share of the student's tokens whose characters are exactly one token of the teacher's, by kind of token."""
    counts: dict[str, list[int]] = {}
    for row in pair.rows:
        spans = []
        for lm in (pair.teacher, pair.student):
            encoding = lm.tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True)
            spans.append([(start, end) for start, end in encoding["offset_mapping"] if end > start])
        theirs = set(spans[0])
        for start, end in spans[1]:
            for kind in ("all", _kind(row.text[start:end])):
                counts.setdefault(kind, []).append((start, end) in theirs)
    return {kind: float(np.mean(hits)) for kind, hits in counts.items()}


def _kind(text: str) -> str:
    if any(char.isdigit() for char in text):
        return "with digits"
    return "words" if text.strip().isalpha() else "other"
