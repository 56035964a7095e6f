"""The module that is trained: student and loss in one forward, so DDP and FSDP2 see one forward and one backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.losses.chunked import Terms, cut_head, fused_terms
from limbeck.models.attention import PACKED, register_packed
from limbeck.models.hf import head_of, packed_hidden
from limbeck.train.objective import scheduled_values, terms_at
from limbeck.train.qad import add_fake_quant, fake_quantize
from limbeck.types import Batch, LossOut, Vocab

if TYPE_CHECKING:
    from limbeck.recipe import Objective, Qad


class Distiller(nn.Module):
    """`forward(batch) -> LossOut`: sums over the batch's supervised positions.

    `vocab` is what the columns of the student's head are: padding beyond the real tokens is cut. `precision` is the
    dtype of the products (bfloat16 through autocast, weights stay float32). `extras` are further losses with parameters
    of their own: each is called with the batch and the student's hidden_ND at its supervised positions, and returns a
    sum over them, which is added to the loss and reported under its name. Parameters that do not require a gradient
    stay as they are.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        terms: Terms,
        *,
        vocab: Vocab,
        precision: torch.dtype = torch.float32,
        extras: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        register_packed()
        student.set_attn_implementation(PACKED)
        student.train()
        self.student = student
        self.extras = nn.ModuleDict(extras or {})
        self.terms = terms
        self.precision = precision
        self.vocab = vocab
        self.head_grid: str | None = None
        self._objective: Objective | None = None
        self._qad: Qad | None = None

    def follow(self, objective: Objective | None, qad: Qad | None) -> None:
        """From now on `advance` makes the terms those of an objective (None: they stay what they are), and begins
        quantization when it is due."""
        self._objective, self._qad = objective, qad

    def advance(self, share: float) -> dict[str, float]:
        """Become what the step in the middle of which `share` of the budget is used trains. Returns the numbers that
        change with it, for the metrics."""
        if self._qad is not None and share >= self._qad.start:
            self.quantize(self._qad)
        if self._objective is None:
            return {}
        self.terms = terms_at(self._objective, share)
        return scheduled_values(self._objective, share)

    def quantize(self, settings: Qad) -> None:
        """From now on the student computes with its weights as the export of that kind stores them. Asked again, it
        changes nothing. Raises RecipeError for a student that the export does not know."""
        if self.head_grid is None:
            self.head_grid = add_fake_quant(self.student, settings.quant)

    def forward(self, batch: Batch) -> LossOut:
        half = self.precision != torch.float32
        with torch.autocast(batch.ids_T.device.type, dtype=self.precision, enabled=half):
            hidden_ND = packed_hidden(self.student, batch)
        head = cut_head(head_of(self.student), self.vocab)
        if self.head_grid is not None:
            head = replace(head, weight_VD=fake_quantize(head.weight_VD, self.head_grid))
        with torch.autocast(batch.ids_T.device.type, enabled=False):
            out = fused_terms(
                hidden_ND.to(self.precision),
                head,
                batch.target,
                self.terms,
                labels_N=batch.labels_N,
                weights_N=batch.weights_N,
            )
            more: dict[str, Tensor] = {name: module(batch, hidden_ND) for name, module in self.extras.items()}
        if not more:
            return out
        terms = out.terms | {name: value.detach() for name, value in more.items()}
        return LossOut(out.loss + torch.stack([*more.values()]).sum(), terms, out.num)
