"""The expert answers first; how sure it was of its own words decides whether the teacher is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError
from limbeck.router.logistic import fit_logistic, sigmoid

if TYPE_CHECKING:
    from collections.abc import Sequence

    Numbers = Sequence[float] | np.ndarray

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
