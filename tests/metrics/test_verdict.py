"""The verdict on both axes: green only where nothing got worse, and every figure said with its interval."""

import itertools
import math

import numpy as np
import pytest

from limbeck.metrics.intervals import Bootstrap, Interval, paired_bootstrap
from limbeck.metrics.verdict import MIN_CLUSTERS, Axes, judge, judge_words


def boot(student, twin, spread=0.02, clusters=100):
    gap = student - twin
    models = {"student": Interval(student, student - spread, student + spread)}
    models["twin"] = Interval(twin, twin - spread, twin + spread)
    return Bootstrap(models, Interval(gap, gap - spread, gap + spread), clusters)


KL = {"better": boot(0.4, 0.7), "open": boot(0.4, 0.4), "worse": boot(0.7, 0.4)}
TOP = {"better": boot(0.71, 0.63), "open": boot(0.7, 0.7), "worse": boot(0.63, 0.71)}
WHERE = "on 240 held-out rows the student"
CLOSER, FURTHER = "is closer to the teacher than its twin", "is further from the teacher than its twin"
CE = {"better": boot(2.3, 2.4), "open": boot(2.4, 2.4), "worse": boot(2.6, 2.4)}


def say(kl, top, ce, ce_weight=0.0):
    return judge(Axes(KL[kl], TOP[top], CE[ce]), num_rows=240, ce_weight=ce_weight, teacher_ce=math.log(9.5))


@pytest.mark.parametrize(
    ("changes", "state", "claim"),
    [
        ("better better better", "good", f"Distillation helped: {WHERE} {CLOSER}, and predicts the text better"),
        ("better better open", "good", f"Distillation helped: {WHERE} {CLOSER}, and predicts the text no differently"),
        ("open open better", "good", f"Distillation helped: {WHERE} is as far from the teacher"),
        ("better better worse", "mixed", f"A gain and a loss: {WHERE} {CLOSER}, but predicts the text worse"),
        ("worse open better", "mixed", f"A gain and a loss: {WHERE} {FURTHER}, but predicts the text better"),
        ("better open worse", "mixed", f"A gain and a loss: {WHERE} may be closer"),
        ("better open open", "open", "Distillation helped in part"),
        ("open better open", "open", "Distillation helped in part"),
        ("open open open", "open", "No difference between student and twin can be shown on 240 held-out rows"),
        ("open open worse", "bad", "Distillation did not help"),
        ("better worse open", "bad", f"Distillation did not help: {WHERE} {FURTHER}"),
        ("worse worse worse", "bad", f"Distillation did not help: {WHERE} {FURTHER}, and predicts the text worse"),
    ],
)
def test_what_is_said(changes, state, claim):
    verdict = say(*changes.split())
    assert verdict.state == state
    assert verdict.claim.startswith(claim)
    assert verdict.sentence.startswith(verdict.claim) and verdict.sentence.endswith(".")


def test_green_is_rare_and_red_is_no_gain():
    for changes in itertools.product(("better", "open", "worse"), repeat=3):
        verdict = say(*changes)
        assert verdict.helped is {"good": True, "bad": False}.get(verdict.state)
        if verdict.state == "good":
            assert "worse" not in changes and "better" in changes
        if verdict.state == "bad":
            assert "worse" in changes and changes[2] != "better"


def test_the_numbers_of_both_axes_are_said():
    sentence = say("better", "better", "worse").sentence
    assert "KL 0.400 against 0.700 (difference -0.300, 95% interval -0.320 to -0.280)" in sentence
    assert "agreement 71.0% against 63.0% (+8.0 points, +6.0 to +10.0)" in sentence
    assert (
        "perplexity of the text 13.46 against 11.02 (+0.200 nats, +0.180 to +0.220; the teacher's is 9.50)" in sentence
    )


def test_a_loss_names_the_key_that_trades_it():
    assert "weighs the text with 0.3 (objective.ce_weight): a higher" in say("better", "better", "worse", 0.3).advice
    assert "a lower weight" in say("worse", "open", "better", 0.9).advice
    assert say("better", "better", "better").advice == ""


def test_no_verdict_from_a_handful_of_rows():
    """One row resamples to itself: an interval of width 0 proves nothing."""
    sums = {"student": np.array([1.0]), "twin": np.array([2.0])}
    one = paired_bootstrap(sums, np.ones(1), pair=("student", "twin"))
    assert one.difference == Interval(-1.0, -1.0, -1.0)
    verdict = judge(Axes(one, one, one), num_rows=1, ce_weight=0.0, teacher_ce=1.0)
    assert verdict.state == "open" and verdict.sentence.startswith("1 held-out row is too few")
    few = Axes(boot(0.4, 0.7, clusters=MIN_CLUSTERS - 1), TOP["better"], CE["better"])
    assert judge(few, num_rows=9, ce_weight=0.0, teacher_ce=1.0).helped is None


def test_without_a_twin_or_a_teacher_nothing_is_claimed():
    alone = Bootstrap({"student": Interval(0.4, 0.38, 0.42)}, None, 100)
    verdict = judge(Axes(alone, alone, alone), num_rows=100, ce_weight=0.0, teacher_ce=1.0)
    assert verdict.state == "open" and "train.twin" in verdict.sentence and "0.400" in verdict.sentence
    words = judge_words(Axes(alone, alone, alone), num_rows=100)
    assert words.state == "open" and "1.49 (0.400 nats" in words.sentence and "as the teacher" not in words.sentence
