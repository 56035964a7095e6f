"""The module that is trained: student and loss in one forward, so DDP and FSDP2 see one forward and one backward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.losses.chunked import Terms, cut_head, fused_terms
from limbeck.models import packed_attention
from limbeck.models.hf import head_of, packed_hidden
from limbeck.train.qad import add_fake_quant, fake_quantize
from limbeck.types import Batch, LossOut

if TYPE_CHECKING:
    from limbeck.recipe import Qad


class Distiller(nn.Module):
    """`forward(batch) -> LossOut`: sums over the batch's supervised positions.

    `precision` is the dtype of the products (bfloat16 through autocast, weights stay float32); `vocab` is the
    number of tokens that teacher and student share: padding of the head beyond it is cut.
    """

    def __init__(
        self, student: PreTrainedModel, terms: Terms, *, vocab: int, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        packed_attention.register()
        student.set_attn_implementation(packed_attention.NAME)
        student.train().requires_grad_(True)
        self.student = student
        self.terms = terms
        self.precision = precision
        self.vocab = vocab
        self.head_grid: str | None = None

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
            return fused_terms(
                hidden_ND.to(self.precision),
                head,
                batch.target,
                self.terms,
                labels_N=batch.labels_N,
                weights_N=batch.weights_N,
            )
