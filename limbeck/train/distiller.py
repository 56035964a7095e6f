"""The module that is trained: student and loss in one forward, so DDP and FSDP2 see one forward and one backward."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.lms import segments
from limbeck.lms.hf import head_of, packed_hidden
from limbeck.losses.chunked import Terms, cut_head, fused_terms
from limbeck.types import Batch, LossOut


class Distiller(nn.Module):
    """`forward(batch) -> LossOut`: sums over the batch's supervised positions.

    `precision` is the dtype of the products (bfloat16 through autocast, weights stay float32); `vocab` is the
    number of tokens that teacher and student share: padding of the head beyond it is cut.
    """

    def __init__(
        self, student: PreTrainedModel, terms: Terms, *, vocab: int, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        segments.register()
        student.set_attn_implementation(segments.NAME)
        student.train().requires_grad_(True)
        self.student = student
        self.terms = terms
        self.precision = precision
        self.vocab = vocab

    def forward(self, batch: Batch) -> LossOut:
        half = self.precision != torch.float32
        with torch.autocast(batch.ids_T.device.type, dtype=self.precision, enabled=half):
            hidden_ND = packed_hidden(self.student, batch)
        head = cut_head(head_of(self.student), self.vocab)
        with torch.autocast(batch.ids_T.device.type, enabled=False):
            return fused_terms(
                hidden_ND.to(self.precision),
                head,
                batch.target,
                self.terms,
                labels_N=batch.labels_N,
                weights_N=batch.weights_N,
            )
