"""What a check finds: a problem stops a run, a doubt does not, a fact is worth knowing, a cost is what work takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from limbeck.config.problems import Problem
from limbeck.label.request_cost import RequestCost

if TYPE_CHECKING:
    from collections.abc import Sequence


class StageEstimate(TypedDict):
    """What one stage is expected to cost."""

    seconds: float
    peak_bytes: float
    disk_bytes: float


class Fact(NamedTuple):
    """A sentence."""

    text: str


class Doubt(NamedTuple):
    """What is allowed and yet doubtful, with the key that it is about."""

    about: Problem


class StageCost(NamedTuple):
    """The estimate of one stage."""

    stage: str
    estimate: StageEstimate


Finding = Problem | Fact | Doubt | StageCost | RequestCost


@dataclass(frozen=True)
class CheckResult:
    """`problems` stop a run; `warnings` are about what is allowed and yet doubtful; `estimate` is by stage, and
    `requests` what the endpoint is asked: {} and None when there are problems or no estimate was asked for."""

    problems: list[Problem]
    facts: list[str]
    warnings: list[Problem]
    estimate: dict[str, StageEstimate]
    requests: RequestCost | None

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> CheckResult:
        return cls(
            problems=[found for found in findings if isinstance(found, Problem)],
            facts=[found.text for found in findings if isinstance(found, Fact)],
            warnings=[found.about for found in findings if isinstance(found, Doubt)],
            estimate={found.stage: found.estimate for found in findings if isinstance(found, StageCost)},
            requests=next((found for found in findings if isinstance(found, RequestCost)), None),
        )
