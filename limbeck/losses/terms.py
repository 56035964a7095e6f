"""What is minimised, as data: divergences with their temperatures, cross-entropy, and how positions are weighed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.losses.divergences import DIVERGENCES, Divergence, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

MEASURES = ("entropy", "confidence")


@dataclass(frozen=True)
class Adaptive:
    """A number for each position by how unsure the teacher is there, at temperature 1: `low` where it is certain,
    `high` from `full` on, straight in between.

    `measure` is "entropy" (in nats) or "confidence" (1 - the largest probability).
    """

    measure: str
    low: float
    high: float
    full: float = 1.0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"unknown measure {self.measure!r}; allowed are {', '.join(MEASURES)}")
        if not self.full > 0:
            raise ValueError(f"full is {self.full}; it must be above 0")

    def at(self, unsure_N: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (unsure_N / self.full).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Term:
    """`weight * T^2 * divergence`. `params` are the divergence's own (`DIVERGENCES` lists them).

    Raises ValueError for an unknown divergence or parameter, a temperature not above 0, or one without effect.
    """

    divergence: str = "forward_kl"
    temperature: float | Adaptive = 1.0
    weight: float = 1.0
    params: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", resolve(self.divergence, self.params))
        by = self.temperature
        if not (min(by.low, by.high) if isinstance(by, Adaptive) else by) > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not self.spec.tempered and self.temperature != 1.0:
            raise ValueError(f"{self.divergence} does not depend on the temperature; leave it at 1")
        if self.weight < 0:
            raise ValueError(f"the weight of {self.divergence} is {self.weight}; it must not be negative")

    @property
    def spec(self) -> Divergence:
        return DIVERGENCES[self.divergence]

    @property
    def needs(self) -> str:
        """What the target must offer: "sample", "cells" or "full"."""
        if isinstance(self.temperature, Adaptive):
            return "full"
        # A JSD with beta 0 is forward KL.
        return "sample" if self.params.get("beta") == 0 and self.divergence == "jsd" else self.spec.needs


@dataclass(frozen=True)
class Terms:
    """loss = (1 - ce_weight) * (T^2 * divergence + sum of `also`) + ce_weight * CE.

    CE is on ground truth at temperature 1; with `label_smoothing` e it is `(1 - e) CE + e * mean over V of -log q`
    (Szegedy et al. 2016, arXiv 1512.00567). All terms share one pass over the head. `position_weights` weighs whole
    positions by the teacher.
    """

    divergence: str = "forward_kl"
    temperature: float | Adaptive = 1.0
    ce_weight: float = 0.0
    params: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0
    also: tuple[Term, ...] = ()
    position_weights: Adaptive | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ce_weight <= 1:
            raise ValueError(f"ce_weight is {self.ce_weight}; allowed is 0 to 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed is 0 to below 1")
        if self.label_smoothing and not self.ce_weight:
            raise ValueError("label_smoothing has no effect without cross-entropy; raise ce_weight above 0")
        object.__setattr__(self, "params", self.kd[0].params)

    @property
    def kd(self) -> tuple[Term, ...]:
        """The distillation terms, the first and the others."""
        return (Term(self.divergence, self.temperature, 1.0, self.params), *self.also)

    @property
    def needs_labels(self) -> bool:
        return self.ce_weight > 0 or any(term.spec.labels for term in self.kd)
