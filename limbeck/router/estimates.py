"""What a router estimates from a few numbers, with numpy alone: probabilities, expected quality, when a reply stands.

`N` prompts, `M` models, `E` experts (kinds of prompts), `F` features, `B` buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from limbeck.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


NEWTON_STEPS = 50


def fit_logistic(features_NF: np.ndarray, right_N: np.ndarray, weight_N: np.ndarray, *, l2: float = 1e-3) -> np.ndarray:
    """Coefficients [F + 1], the intercept last, of P(right) = sigmoid(features @ w + b), by Newton's method in float64.

    `l2` keeps them finite where the two kinds part completely; it does not touch the intercept.
    """
    design = np.column_stack([features_NF, np.ones(len(features_NF))]).astype(np.float64)
    penalty = np.diag([l2] * (design.shape[1] - 1) + [1e-9])
    weight_N = weight_N / weight_N.sum()
    found = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        guess_N = sigmoid(design @ found)
        gradient = design.T @ (weight_N * (guess_N - right_N)) + penalty @ found
        curvature = (design * (weight_N * guess_N * (1 - guess_N))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(found)), gradient)
        length = float(np.abs(step).max())
        found = found - step * min(1.0, 10.0 / max(length, 1e-30))
        if length < 1e-10:
            break
    return found


def fit_temperature(logits_NE: np.ndarray, label_N: np.ndarray) -> float:
    """The temperature at which softmax(logits / T) loses least on held-out prompts (Guo et al. 2017, arXiv 1706.04599,
    section 4.2), within 0.05 and 20: golden section on log T, where the loss has one valley."""
    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5.0) - 1) / 2

    def loss(log_t: float) -> float:
        scaled = logits_NE.astype(np.float64) / np.exp(log_t)
        scaled = scaled - scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(label_N)), label_N]).mean())

    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, dtype=np.float64)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


MOST_REGRESSED = 1500  # rows of one regression: it solves a system of that size
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WORTH = 0.98  # a regression has to lower the left-out error to this share of the mean's
SHRINK = 4.0  # a mean counts this many rows at the mean of all rows


def expected_quality(
    means_EM: np.ndarray, floor_M: np.ndarray, kinds_NE: np.ndarray, words_NM: np.ndarray
) -> np.ndarray:
    """Quality within 0 and 1 of each model on each prompt [N, M]: kinds_NE @ means_EM + outside * floor_M + words_NM.

    `kinds_NE` are the probabilities of the experts' kinds, `outside` of none of them. `floor_M` counts out of scope.
    `words_NM` is what the regression says (0 where it was not worth it): an expert's counts as far as the prompt is of
    its own kind, any other model's in full."""
    outside = 1.0 - kinds_NE.sum(-1, keepdims=True)
    others = np.ones((len(kinds_NE), len(floor_M) - kinds_NE.shape[1]), kinds_NE.dtype)
    reach_NM = np.concatenate([kinds_NE, others], axis=-1)
    return np.clip(kinds_NE @ means_EM + outside * floor_M + reach_NM * words_NM, 0.0, 1.0)


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


MIN_REPLIES = 20


@dataclass(frozen=True)
class Cascade:
    """From the mean log-prob of an expert's own reply (nats a token, at most 0) to the probability that it is right.

    P(right) = sigmoid(slope * mean_logp + intercept); the teacher is asked below `threshold`. `num` replies were seen.
    """

    slope: float
    intercept: float
    threshold: float
    num: int

    @classmethod
    def fit(
        cls, mean_logps: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray, *, threshold: float = 0.5
    ) -> Cascade:
        """Platt's scaling (1999), with his targets for few examples. `right` is the quality of each reply, 0 to 1: 0 or
        1 where it was judged so, else a share.

        Raises DataError for fewer than 20 replies, or log-probs that are none. A slope below 0 would say that the surer
        an expert is the more often it errs: then the slope is 0, and every reply is as likely right as all."""
        logp_N, right_N = np.asarray(mean_logps, np.float64), np.asarray(right, np.float64)
        if len(logp_N) != len(right_N) or len(logp_N) < MIN_REPLIES:
            raise DataError(f"a cascade needs {MIN_REPLIES} judged replies or more; there are {len(logp_N)}.")
        if not (np.isfinite(logp_N).all() and (logp_N <= 1e-6).all() and ((right_N >= 0) & (right_N <= 1)).all()):
            raise DataError("a cascade needs mean log-probs, finite and at most 0, and qualities within 0 and 1.")
        ups, downs = right_N.sum(), (1 - right_N).sum()
        wanted_N = right_N * (ups + 1) / (ups + 2) + (1 - right_N) / (downs + 2)
        centre, spread = logp_N.mean(), max(float(logp_N.std()), 1e-9)
        slope, intercept = fit_logistic(((logp_N - centre) / spread)[:, None], wanted_N, np.ones_like(logp_N), l2=1e-6)
        if slope <= 0:
            mean = float(np.clip(wanted_N.mean(), 1e-6, 1 - 1e-6))
            return cls(0.0, float(np.log(mean / (1 - mean))), threshold, len(logp_N))
        return cls(float(slope / spread), float(intercept - slope * centre / spread), threshold, len(logp_N))

    def right(self, mean_logp: float) -> float:
        """The probability that a reply of this mean log-prob is right. What is no number counts as unsure."""
        if not np.isfinite(mean_logp):
            return 0.0
        return float(sigmoid(np.array(self.slope * mean_logp + self.intercept)))

    def decide(self, mean_logp: float) -> bool:
        """Whether the expert's reply stands. False: ask the teacher."""
        return self.right(mean_logp) >= self.threshold
