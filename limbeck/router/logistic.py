"""Probabilities from a few numbers, with numpy alone: logistic regression, temperature, and what they are applied with.

`N` prompts, `E` heads, `F` features.
"""

from __future__ import annotations

import numpy as np

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
