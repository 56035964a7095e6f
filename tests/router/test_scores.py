"""The report: figures of test prompts that nothing was fitted on, complete and JSON-able."""

import json
import random
import re
from dataclasses import replace

import pytest

from limbeck.router.dataset import FitSettings
from limbeck.router.fit import fit
from limbeck.router.frontier import RouteTarget
from limbeck.router.page import chart, page, standalone
from limbeck.router.scores import score_router
from tests.router.routing import cases, costs, prompts


@pytest.fixture(scope="module")
def made():
    draw = random.Random(0)
    rows = [
        replace(case, logp=-0.2 - 0.3 * draw.random() - 0.5 * (case.quality[case.expert] == 0))
        if case.quality
        else case
        for case in cases(train=60, heldout=100, cross=True)
    ]
    wish = FitSettings({**costs(), "generalist": 0.3}, target=RouteTarget("quality", 0.8), compared=("generalist",))
    fitted = fit(rows, wish)
    return fitted, json.loads(json.dumps(score_router(fitted, prompts("music", 50)), allow_nan=False))


@pytest.mark.slow
def test_kinds_and_scope(made):
    fitted, report = made
    counts = report["kinds"]["confusion"]
    assert sum(map(sum, counts)) == len(fitted.parts.test) == 150
    assert sum(row[at] for at, row in enumerate(counts)) > 130
    low, high = report["kinds"]["accuracy"][1:]
    assert 0.9 < low <= report["kinds"]["accuracy"][0] <= high
    assert 0 <= report["kinds"]["ece"] < 0.1
    assert report["scope"]["left_out"]["auroc"][0] > 0.9 and report["scope"]["given"]["auroc"][0] > 0.9
    assert report["scope"]["kept"][0] == pytest.approx(0.95, abs=0.05)


def test_routing_is_between_chance_and_the_oracle(made):
    fitted, report = made
    routing = report["routing"]
    assert routing["target"]["reached"] and routing["quality"][2] >= 0.8  # test prompts may miss it by chance
    assert routing["target"]["met_on_test"] == (routing["quality"][0] >= 0.8)
    assert routing["apgr"][1] > 0.5 and routing["apgr_random"][0] > 0.5
    assert 0 < routing["share_needed"]["50%"] < routing["share_needed"]["80%"] < 1
    cost, quality, share, _ = routing["points"]["router"]
    assert (share, cost) == (pytest.approx(routing["share"][0]), pytest.approx(routing["cost"][0]))
    (weak_cost, weak, *_), (_, strong, *_) = routing["random"]
    assert quality > weak + (strong - weak) * (cost - weak_cost) / (1 - weak_cost)
    assert max(point[1] for point in routing["oracle"]) == 1.0 >= quality
    assert routing["compared"]["generalist"]["router_cost"] <= 0.33
    assert routing["points"]["generalist"][:2] == [0.3, pytest.approx(0.7)]
    for name in fitted.router.experts:
        assert routing["points"][name][1] < 0.5 < routing["points"]["router"][1]


def test_a_cascade_asks_the_teacher_where_the_expert_was_unsure(made):
    fitted, report = made
    points = report["routing"]["cascade"]
    assert set(fitted.router.cascades) == set(fitted.router.experts)
    first, last = points[0], points[-1]
    assert first[2] < 0.2 and last[2] == 1.0 and last[1] == pytest.approx(1.0)
    assert last[0] > 1.0  # the expert was paid as well
    halfway = next(point for point in points if point[2] > 0.35)
    assert halfway[1] > 0.9


def test_the_page_and_the_chart(made):
    _, report = made
    text = page(report)
    assert text == page(report) and "<script" not in text
    for word in ("APGR", "Quality against cost", "out of scope", "generalist", "95% interval"):
        assert word in text
    alone = standalone(chart(report["routing"]))
    assert alone.startswith("<svg") and "--student" in alone and "prefers-color-scheme" in alone
    style = alone[alone.index("<style>") + 7 : alone.index("</style>")]
    assert style.count("{") == style.count("}") and "body" not in style  # colours alone, whole rules
    assert set(re.findall(r"var\((--[a-z]+)", alone)) <= set(re.findall(r"(--[a-z-]+):", style))
