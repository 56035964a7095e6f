"""What a student gained over its twin, on two axes: closeness to the teacher, and usefulness on the text itself.

The twin is the same student trained on the same rows without the teacher. A student can come closer to its teacher and
predict its user's text worse: a teacher that never saw the domain is no better guide to it than the text is. So one
sentence says both, and it is good news only where nothing got worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from limbeck.metrics.intervals import Bootstrap, Interval

MIN_CLUSTERS = 10

Change = Literal["better", "part", "open", "worse"]
State = Literal["good", "mixed", "open", "bad"]


@dataclass(frozen=True)
class TwinVerdict:
    """`state`: "good" where one axis is better beyond doubt and none is worse; "mixed" where one is better and the
    other worse; "bad" where one is worse and none better; else "open". `helped`: True for good, False for bad, else
    None. `claim`, `figures` and `advice` are the parts of `sentence`."""

    state: State
    helped: bool | None
    claim: str
    figures: str
    advice: str
    sentence: str

    @classmethod
    def of(cls, state: State, claim: str, figures: str, advice: str = "") -> TwinVerdict:
        helped = {"good": True, "bad": False}.get(state)
        return cls(state, helped, claim, figures, advice, " ".join(f"{claim}: {figures}. {advice}".split()))


class Axes(NamedTuple):
    """Means and paired differences of student and twin: KL to the teacher, agreement with its first choice (closeness),
    and cross-entropy on the true text (usefulness)."""

    kl: Bootstrap
    agreement: Bootstrap
    ce: Bootstrap


def judge(axes: Axes, *, num_rows: int, ce_weight: float, teacher_ce: float) -> TwinVerdict:
    """What the paired differences student - twin say. `ce_weight` is the recipe's: which axis it was made for."""
    kl, top, ce = (each.difference for each in axes)
    if kl is None or top is None or ce is None:
        return TwinVerdict.of("open", *_alone(axes, num_rows))
    figures = _figures(axes, teacher_ce)
    if axes.kl.num_clusters < MIN_CLUSTERS:
        rows = "held-out row is" if num_rows == 1 else "held-out rows are"
        return TwinVerdict.of("open", f"{num_rows} {rows} too few to say whether distillation helped", figures)
    near = _both(_change(kl), _change(top, higher_is_better=True))
    text = _change(ce)
    state, claim = _claim(near, text, num_rows)
    return TwinVerdict.of(state, claim, figures, _advice(near, text, ce_weight))


def judge_words(axes: Axes, *, num_rows: int) -> TwinVerdict:
    """What can be said of a student whose teacher is known by its words only: KL is cross-entropy on them."""
    near, top = axes.kl.models["student"], axes.agreement.models["student"]
    return TwinVerdict.of(
        "open",
        "The teacher is known by its words only",
        f"on {num_rows:,} held-out rows of them the student's perplexity is {_perplexity(near.value)} "
        f"({near.value:.3f} nats, 95% interval {near.low:.3f} to {near.high:.3f}), and its first choice is the next "
        f"token at {top.value:.1%} of positions ({top.low:.1%} to {top.high:.1%})",
    )


def _change(difference: Interval, *, higher_is_better: bool = False) -> Change:
    low, high = (-difference.high, -difference.low) if higher_is_better else (difference.low, difference.high)
    return "better" if high < 0 else "worse" if low > 0 else "open"


def _both(kl: Change, top: Change) -> Change:
    """Closeness has two figures: worse where one is, better where both are."""
    found = {kl, top}
    return "worse" if "worse" in found else "better" if found == {"better"} else "part" if "better" in found else "open"


NEAR = {
    "better": "is closer to the teacher than its twin",
    "part": "may be closer to the teacher than its twin (one of KL and agreement is better, the other may not be)",
    "open": "is as far from the teacher as its twin, as far as can be shown",
    "worse": "is further from the teacher than its twin",
}
TEXT = {
    "better": "predicts the text better",
    "open": "predicts the text no differently, as far as can be shown",
    "worse": "predicts the text worse",
}


def _claim(near: Change, text: Change, num_rows: int) -> tuple[State, str]:
    where = f"on {num_rows:,} held-out rows the student"
    changes = {near, text}
    if changes == {"open"}:
        return "open", f"No difference between student and twin can be shown on {num_rows:,} held-out rows"
    gained, lost = not changes.isdisjoint({"better", "part"}), "worse" in changes
    state: State = "mixed" if gained and lost else "bad" if lost else "good" if "better" in changes else "open"
    word = {
        "good": "Distillation helped",
        "mixed": "A gain and a loss",
        "bad": "Distillation did not help",
        "open": "Distillation helped in part",
    }[state]
    link = "but" if (near == "worse") != (text == "worse") and gained else "and"
    return state, f"{word}: {where} {NEAR[near]}, {link} {TEXT[text]}"


def _advice(near: Change, text: Change, ce_weight: float) -> str:
    """Which axis the recipe was made for, and the keys that trade one for the other."""
    made = f"The recipe weighs the text with {ce_weight:g} (objective.ce_weight)"
    if text == "worse":
        return f"{made}: a higher weight gives more of the text, and so does a teacher that was trained on it."
    if near == "worse":
        return f"{made}: a lower weight brings the student closer to the teacher."
    return ""


def _figures(axes: Axes, teacher_ce: float) -> str:
    nats, top, ce = axes.kl.difference, axes.agreement.difference, axes.ce.difference
    assert nats is not None and top is not None and ce is not None
    (kl, kl_twin), (same, same_twin), (text, text_twin) = (
        (each.models["student"].value, each.models["twin"].value) for each in axes
    )
    return (
        f"KL {kl:.3f} against {kl_twin:.3f} "
        f"(difference {nats.value:+.3f}, 95% interval {nats.low:+.3f} to {nats.high:+.3f}), "
        f"agreement {same:.1%} against {same_twin:.1%} "
        f"({100 * top.value:+.1f} points, {100 * top.low:+.1f} to {100 * top.high:+.1f}), "
        f"perplexity of the text {_perplexity(text)} against {_perplexity(text_twin)} "
        f"({ce.value:+.3f} nats, {ce.low:+.3f} to {ce.high:+.3f}; the teacher's is {_perplexity(teacher_ce)})"
    )


def _perplexity(ce: float) -> str:
    return f"{math.exp(min(ce, 700.0)):.2f}"


def _alone(axes: Axes, num_rows: int) -> tuple[str, str, str]:
    near, top = axes.kl.models["student"], axes.agreement.models["student"]
    return (
        "Whether distillation helped cannot be said without a twin",
        f"on {num_rows:,} held-out rows the student's KL to the teacher is {near.value:.3f} "
        f"(95% interval {near.low:.3f} to {near.high:.3f}) and its agreement {top.value:.1%} "
        f"({top.low:.1%} to {top.high:.1%})",
        "Set train.twin to true to train one.",
    )
