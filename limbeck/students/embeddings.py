"""A student's embeddings from the teacher's: copied where the width is the same, else projected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.students.blocks import embedding_weight, head_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 8192


def copy_embeddings(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Set the student's token embedding, and its output head where that is not tied, from the teacher's.

    Rows of tokens that only the student has keep their initial values. Uses torch's global generator where the student
    is wider than the teacher.
    """
    pairs = [(embedding_weight(teacher), embedding_weight(student))]
    if head_weight(student) is not embedding_weight(student):
        pairs.append((head_weight(teacher), head_weight(student)))
    with torch.no_grad():
        for source_VD, new_VD in pairs:
            num_rows = min(len(source_VD), len(new_VD))
            rows_VD = source_VD[:num_rows].detach().cpu().float()
            if source_VD.shape[1] != new_VD.shape[1]:
                rows_VD = project(rows_VD, new_VD.shape[1], std=float(new_VD.std()))
            new_VD[:num_rows] = rows_VD


def project(rows_VD: Tensor, width: int, *, std: float) -> Tensor:
    """Rows [V, D] as rows [V, width] whose inner products are as near to the old ones as they can be, scaled to `std`.

    Narrower: the `width` leading right singular vectors (truncated SVD, the best rank-`width` approximation: Eckart and
    Young 1936), with the sign of each fixed by its largest entry. Wider: a random isometry, from torch's global
    generator.
    """
    dim = rows_VD.shape[1]
    if width < dim:
        gram_DD = torch.zeros(dim, dim, dtype=torch.float64)
        for chunk_nD in rows_VD.split(CHUNK):
            gram_DD += chunk_nD.double().T @ chunk_nD.double()
        basis_DW = torch.linalg.eigh(gram_DD).eigenvectors.flip(1)[:, :width]
        largest_1W = basis_DW.gather(0, basis_DW.abs().argmax(0, keepdim=True))
        basis_DW = (basis_DW * largest_1W.sign()).float()
    else:
        basis_DW = torch.linalg.qr(torch.randn(width, dim)).Q.T
    new_VW = torch.cat([chunk_nD @ basis_DW for chunk_nD in rows_VD.split(CHUNK)])
    return new_VW * (std / new_VW.std().clamp_min(1e-12))
