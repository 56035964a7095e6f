"""The rulers of `limbeck selftest`: the models' own forward on one document at a time (no packing, eager attention),
and losses in double precision by autograd."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.losses import chunked, divergences
from limbeck.losses.divergences import Cells, Extra
from limbeck.losses.terms import Term, Terms
from limbeck.models import hf
from limbeck.types import Dist, Head, LiveTarget, Row, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from limbeck.models.hf import HfLM

SAMPLE = 65536  # entries of a parameter's gradient that are compared
CHUNK = 8192  # rows of a head in double precision at a time

# ---- each document alone, by the model's own code --------------------------------------------------------------------


def predicting(rows: Sequence[Row | Trace]) -> list[list[int]]:
    """By the definition, for every row: hidden rows that predict its supervised tokens (token j is told by j - 1)."""
    return [[j - 1 for start, end in row.spans for j in range(start, end)] for row in rows]


@contextlib.contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the plainest attention that transformers has for the family."""
    before = str(model.config._attn_implementation)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def alone(lm: HfLM, rows: Sequence[Row], vocab: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([z_nV.float() for z_nV in logits_alone(lm.model, rows, vocab)])


def logits_alone(model: PreTrainedModel, rows: Sequence[Row | Trace], vocab: int) -> Iterator[Tensor]:
    """Each document alone: logits_nV of the positions that predict its supervised tokens."""
    device = hf.head_layer(model).weight.device
    for row, at in zip(rows, predicting(rows), strict=True):
        ids_1T = torch.from_numpy(row.ids.astype(np.int64))[None].to(device)
        with own_attention(model):
            z_TV = model(input_ids=ids_1T, use_cache=False).logits[0]
        yield z_TV[at, :vocab]


# ---- gradients -------------------------------------------------------------------------------------------------------


class StepResult(NamedTuple):
    """A loss sum, and by parameter some entries of its gradient with its norm as the last."""

    loss: float
    grads: dict[str, Tensor]


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = grad.detach().flatten()
        some = flat[:: max(flat.numel() // SAMPLE, 1)].double()
        found[name] = torch.cat([some, flat.norm().double()[None]])
    return found


def gradient_error(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest entry of each parameter (or a thousandth of the largest of all:
    some gradients are zero in exact arithmetic)."""
    sizes = {name: float(grad[:-1].abs().max()) for name, grad in other.items()}
    floor = max(1e-3 * max(sizes.values()), 1e-30)
    errors = [
        torch.stack(
            [(one[name] - grad)[:-1].abs().max() / max(sizes[name], floor), _norm_error(one[name], grad, floor)]
        )
        for name, grad in other.items()
    ]
    return float(torch.stack(errors).max())


def _norm_error(one: Tensor, other: Tensor, floor: float) -> Tensor:
    return (one[-1] - other[-1]).abs() / other[-1].clamp_min(floor)


def change(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, over all sampled entries."""
    gap = sum(float((one[name] - grad)[:-1].square().sum()) for name, grad in other.items())
    size = sum(float(grad[:-1].square().sum()) for grad in other.values())
    return (gap / max(size, 1e-300)) ** 0.5


# ---- losses in double precision --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Hidden rows and the head that makes logits of them."""

    hidden_ND: Tensor
    head: Head

    @cached_property
    def raw_NV(self) -> Tensor:
        """hidden @ weight.T in float64, made once."""
        parts = self.head.weight_VD.detach().split(CHUNK)
        return torch.cat([self.hidden_ND.detach().double() @ part.double().T for part in parts], 1)

    @property
    def logits_NV(self) -> Tensor:
        return finished(self.raw_NV, self.head)


class Result(NamedTuple):
    """A loss sum and its gradients; of the head's weight some rows."""

    loss: float
    hidden_ND: Tensor
    weight_RD: Tensor
    bias_V: Tensor | None

    def error(self, truth: Result) -> float:
        """Largest relative error of value and gradients; NaN where a number is missing."""
        errors = [abs(self.loss - truth.loss) / max(abs(truth.loss), 1e-2)]
        for one, other in zip(self[1:], truth[1:], strict=True):
            if one is not None and other is not None:
                errors.append(float((one.double() - other).abs().max() / other.abs().max().clamp_min(1e-12)))
        return float(np.max(errors))


def _rows_of(labels_N: Tensor, vocab: int) -> Tensor:
    """Rows of the head whose gradient is compared: the labels', and every so many."""
    spread = torch.arange(0, vocab, max(vocab // 256, 1), device=labels_N.device)
    return torch.cat([labels_N, spread]).unique()


def fused(side: Side, target: Dist | LiveTarget | None, terms: Terms, labels_N: Tensor) -> Result:
    """The loss that is trained, in the hidden rows' dtype."""
    hidden_ND = side.hidden_ND.detach().clone().requires_grad_()
    weight_VD = side.head.weight_VD.detach().requires_grad_()
    bias_V = None if side.head.bias_V is None else side.head.bias_V.detach().requires_grad_()
    head = replace(side.head, weight_VD=weight_VD, bias_V=bias_V)
    loss = chunked.fused_terms(hidden_ND, head, target, terms, labels_N=labels_N).loss
    loss.backward()
    weight_RD = _grad(weight_VD)[_rows_of(labels_N, len(weight_VD))]
    return Result(float(loss.detach()), _grad(hidden_ND), weight_RD, None if bias_V is None else _grad(bias_V))


def _grad(leaf: Tensor) -> Tensor:
    return torch.full_like(leaf, torch.nan) if leaf.grad is None else leaf.grad


def plain(side: Side, target: Dist | Side, terms: Terms, labels_N: Tensor) -> Result:
    """The same in float64, from the definition, by autograd."""
    raw_NV = side.raw_NV.detach().requires_grad_()
    z_NV = finished(raw_NV, side.head)
    if isinstance(target, Side):
        loss = plain_loss(z_NV, target.logits_NV, terms, labels_N).sum()
    else:
        loss = plain_stored_loss(z_NV, target, terms, labels_N).sum()
    loss.backward()
    dz_NV = _grad(raw_NV)
    parts = [slice(start, start + CHUNK) for start in range(0, dz_NV.shape[1], CHUNK)]
    dhidden_ND = torch.stack([dz_NV[:, part] @ side.head.weight_VD[part].detach().double() for part in parts]).sum(0)
    dweight_RD = dz_NV[:, _rows_of(labels_N, dz_NV.shape[1])].T @ side.hidden_ND.double()
    return Result(float(loss.detach()), dhidden_ND, dweight_RD, None if side.head.bias_V is None else dz_NV.sum(0))


def finished(z_NV: Tensor, head: Head) -> Tensor:
    if head.bias_V is not None:
        z_NV = z_NV + head.bias_V.detach().double()
    z_NV = z_NV * head.scale
    return z_NV if head.softcap is None else head.softcap * torch.tanh(z_NV / head.softcap)


def plain_loss(z_NV: Tensor, u_NV: Tensor, terms: Terms, labels_N: Tensor) -> Tensor:
    """Per row, from full logits: the plain reference of every term, and cross-entropy."""
    kd_N = torch.zeros_like(z_NV[:, 0])
    for term in terms.kd:
        assert isinstance(term.temperature, float)
        value_N = divergences.divergence(
            term.divergence, z_NV, u_NV, temperature=term.temperature, labels_N=labels_N, **term.params
        )
        kd_N = kd_N + term.weight * value_N
    ce_N = -torch.log_softmax(z_NV, 1).gather(1, labels_N[:, None])[:, 0]
    return (1 - terms.ce_weight) * kd_N + terms.ce_weight * ce_N


def plain_stored_loss(z_NV: Tensor, target: Dist, terms: Terms, labels_N: Tensor) -> Tensor:
    """Per row, from a stored target: on its cells, or where it is a sample minus its expectation of log q."""
    kd_N = sum((_stored_term(z_NV, target, term) for term in terms.kd), torch.zeros_like(z_NV[:, 0]))
    ce_N = -torch.log_softmax(z_NV, 1).gather(1, labels_N[:, None])[:, 0]
    return (1 - terms.ce_weight) * kd_N + terms.ce_weight * ce_N


def _stored_term(z_NV: Tensor, target: Dist, term: Term) -> Tensor:
    assert isinstance(term.temperature, float)
    logq_NV = torch.log_softmax(z_NV / term.temperature, 1)
    valid_NK, ids_NK = target.ids_NK >= 0, target.ids_NK.clamp_min(0)
    logp_NK = target.logp_NK.double().masked_fill(~valid_NK, -torch.inf)
    logq_NK = logq_NV.gather(1, ids_NK).masked_fill(~valid_NK, -torch.inf)
    if target.entropy_N is not None:
        cross_N = -torch.where(valid_NK, logp_NK.exp() * logq_NK, 0.0).sum(1)
        return term.weight * term.temperature**2 * (cross_N - target.entropy_N.double())
    outside_NV = torch.ones_like(logq_NV, dtype=torch.bool)
    for row, (ids_K, valid_K) in enumerate(zip(ids_NK, valid_NK, strict=True)):
        outside_NV[row, ids_K[valid_K]] = False
    tail = bool(outside_NV.any())
    if tail:
        logq_tail_N = logq_NV.masked_fill(~outside_NV, -torch.inf).logsumexp(1)
        logp_NK = torch.cat([logp_NK, target.tail_N.double()[:, None]], 1)
        logq_NK = torch.cat([logq_NK, logq_tail_N[:, None]], 1)
    cells = Cells.of_logp(logp_NK), Cells.of_logp(logq_NK)
    value_N = divergences.on_cells(term.divergence, *cells, Extra(term.params, tail=tail)).value_N
    return term.weight * term.temperature**2 * value_N
