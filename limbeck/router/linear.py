"""Logistic regression on sparse vectors: convex, so the answer does not depend on where one begins.

`N` prompts, `B` buckets, `E` heads. Fitting alone is done with torch: who only decides does not import this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.router.features import Vector

STEPS, MEMORY = 60, 8
GRAM = 128  # columns of a Gram matrix at a time


@dataclass(frozen=True)
class Matrix:
    """Sparse rows [N, B] and their transpose, each as bags: a product is one pass over what is not zero."""

    num: int
    rows: tuple[Tensor, Tensor, Tensor]  # bucket of each value, where each row begins, values
    columns: tuple[Tensor, Tensor, Tensor]  # row of each value, where each bucket begins, values

    @classmethod
    def of(cls, vectors: Sequence[Vector], size: int) -> Matrix:
        buckets = np.concatenate([vector.buckets_M for vector in vectors])
        values = np.concatenate([vector.values_M for vector in vectors])
        lengths = np.array([len(vector.buckets_M) for vector in vectors])
        owners = np.repeat(np.arange(len(vectors)), lengths)
        order = np.argsort(buckets, kind="stable")
        row_starts, column_starts = _starts(lengths), _starts(np.bincount(buckets, minlength=size))
        return cls(
            len(vectors),
            _tensors(buckets, row_starts, values),
            _tensors(owners[order], column_starts, values[order]),
        )

    def times(self, weights_BE: Tensor) -> Tensor:
        """rows @ weights_BE: [N, E]."""
        indices, starts, values = self.rows
        return embedding_bag(indices, weights_BE, starts, mode="sum", per_sample_weights=values)

    def transposed_times(self, rest_NE: Tensor) -> Tensor:
        """rows.T @ rest_NE: [B, E]."""
        indices, starts, values = self.columns
        return embedding_bag(indices, rest_NE, starts, mode="sum", per_sample_weights=values)

    def transposed_times_numpy(self, rest_NE: np.ndarray) -> np.ndarray:
        return self.transposed_times(torch.from_numpy(rest_NE.astype(np.float32))).numpy()

    def gram(self) -> np.ndarray:
        """rows @ rows.T [N, N], a block of columns at a time."""
        indices, starts, values = (part.numpy() for part in self.rows)
        ends, size = np.append(starts[1:], len(indices)), len(self.columns[1])
        blocks = []
        for first in range(0, self.num, GRAM):
            rows = range(first, min(first + GRAM, self.num))
            dense = np.zeros((size, len(rows)), np.float32)
            for at, row in enumerate(rows):
                part = slice(starts[row], ends[row])
                dense[indices[part], at] = values[part]
            blocks.append(self.times(torch.from_numpy(dense)).numpy())
        return np.concatenate(blocks, axis=1)


def _tensors(indices: np.ndarray, starts: np.ndarray, values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(indices), torch.from_numpy(starts), torch.from_numpy(values)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)


class Heads(NamedTuple):
    """One line per expert: logit = values @ weights[buckets] + bias. fp32."""

    weights_BE: np.ndarray
    bias_E: np.ndarray


def fit_heads(matrix: Matrix, wanted_NE: np.ndarray, weight_NE: np.ndarray, *, l2: float) -> Heads:
    """One logistic regression per expert against all that is not its own, minimised together by L-BFGS.

    `wanted_NE` is 1 for the expert's own prompts; `weight_NE` how much each prompt counts for each head (0: it says
    nothing about it). The penalty is l2 / 2 |weights|^2 over the sum of weights; biases are free.
    """
    size = len(matrix.columns[1])
    wanted, weight = torch.from_numpy(wanted_NE).float(), torch.from_numpy(weight_NE).float()
    weight = weight / weight.sum(0) * matrix.num
    heads = wanted.shape[1]
    weights_BE = torch.zeros(size, heads, requires_grad=True)
    bias_E = torch.zeros(heads, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights_BE, bias_E],
        max_iter=STEPS,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-7,
    )

    def loss_and_gradient() -> Tensor:
        with torch.no_grad():
            logits = matrix.times(weights_BE) + bias_E
            loss = (binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum() / matrix.num
            rest = (logits.sigmoid() - wanted) * weight / matrix.num
            weights_BE.grad = matrix.transposed_times(rest) + l2 / matrix.num * weights_BE
            bias_E.grad = rest.sum(0)
            return loss + l2 / (2 * matrix.num) * (weights_BE * weights_BE).sum()

    optimiser.step(loss_and_gradient)
    return Heads(weights_BE.detach().numpy(), bias_E.detach().numpy())
