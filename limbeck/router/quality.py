"""How well each model will do on a prompt: its mean on prompts of each expert's kind, and, where held-out rows show
that the words say more, a ridge regression on them.

`N` judged prompts, `M` models, `E` experts (kinds of prompts), `B` buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST_REGRESSED = 1500  # rows of one regression: it solves a system of that size
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WORTH = 0.98  # a regression has to lower the left-out error to this share of the mean's
SHRINK = 4.0  # a mean counts this many rows at the mean of all rows


@dataclass(frozen=True)
class Quality:
    """Expected quality of model m on a prompt: `kinds_E @ means_EM + outside * floor_M + words_M`, within 0 and 1.

    `kinds_E` are the probabilities of the experts' kinds, `outside` of none of them. `floor_M` is what counts out of
    scope; `words_M` what the regression says (0 where it was not worth it).
    """

    models: tuple[str, ...]
    means_EM: np.ndarray
    floor_M: np.ndarray

    def expected(self, kinds_E: np.ndarray, words_M: np.ndarray) -> np.ndarray:
        """[M], or [N, M] of many prompts. A model other than an expert is expected to know words of any kind; an
        expert's regression counts as far as the prompt is of its own kind."""
        experts = kinds_E.shape[-1]
        outside = 1.0 - kinds_E.sum(-1, keepdims=True)
        reach = np.concatenate(
            [kinds_E, np.ones((*kinds_E.shape[:-1], len(self.models) - experts), kinds_E.dtype)], axis=-1
        )
        return np.clip(kinds_E @ self.means_EM + outside * self.floor_M + reach * words_M, 0.0, 1.0)


def shrunk_means(quality_NM: np.ndarray, kind_N: np.ndarray, experts: int, worst: float) -> np.ndarray:
    """Means by kind and model [E, M]; of few rows, drawn towards the model's mean on all. Where a model was never
    judged on a kind, `worst`: what was never seen is not trusted."""
    found = np.full((experts, quality_NM.shape[1]), worst)
    for model in range(quality_NM.shape[1]):
        judged_N = np.isfinite(quality_NM[:, model])
        if not judged_N.any():
            continue
        overall = quality_NM[judged_N, model].mean()
        for kind in range(experts):
            rows = quality_NM[judged_N & (kind_N == kind), model]
            if len(rows):
                found[kind, model] = (rows.sum() + SHRINK * overall) / (len(rows) + SHRINK)
    return found


class Ridge(NamedTuple):
    """Dual coefficients [N], what the regression says of each row when that row is left out [N], and its penalty."""

    dual_N: np.ndarray
    left_out_N: np.ndarray
    penalty: float


def ridge(gram_NN: np.ndarray, rest_N: np.ndarray) -> Ridge:
    """A ridge regression without intercept at the penalty of the least left-out error, which is exact from one
    decomposition (Golub, Heath and Wahba 1979). Zeros and an infinite penalty where none is worth it."""
    values_N, vectors_NN = np.linalg.eigh(gram_NN.astype(np.float64))
    turned_N = vectors_NN.T @ rest_N
    best = Ridge(np.zeros(len(rest_N)), np.zeros(len(rest_N)), np.inf)
    least = float((rest_N**2).mean()) * WORTH
    for penalty in PENALTIES:
        inverse_N = 1.0 / (np.maximum(values_N, 0.0) + penalty)
        dual_N = vectors_NN @ (inverse_N * turned_N)
        errors_N = dual_N / ((vectors_NN**2) @ inverse_N)
        if float((errors_N**2).mean()) < least:
            least, best = float((errors_N**2).mean()), Ridge(dual_N, rest_N - errors_N, penalty)
    return best
