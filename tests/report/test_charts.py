"""Charts are self-contained SVG in the page's colours; what cannot be drawn is None."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from limbeck.report import charts
from limbeck.report.collect import Curve
from tests.report.fake import details

DETAILS = details(["student", "twin"], ("asyncio", "json", "xml"))


def curve(values, start=1):
    return Curve([float(start + n) for n in range(len(values))], {"loss": list(values), "kl": [], "ce": []})


def all_charts():
    places = DETAILS["by_position"]
    return {
        "training": charts.training({"student": curve([3.0, 2.0, 1.5])}, "loss", "Loss", {"student": 1.0, "twin": 2.0}),
        "intervals": charts.intervals({"student": (0.4, 0.3, 0.5), "twin": (0.7, 0.6, 0.8)}, "KL", as_percent=False),
        "position": charts.by_position(places["edges"], places["kl"], "KL"),
        "reliability": charts.reliability(DETAILS["reliability"]),
        "topics": charts.topics(DETAILS["topics"]),
    }


@pytest.mark.parametrize("name", ["training", "intervals", "position", "reliability", "topics"])
def test_well_formed_and_in_the_colours_of_the_page(name):
    chart = all_charts()[name]
    root = ElementTree.fromstring(chart)
    assert root.tag.endswith("svg") and root.get("role") == "img" and root.get("aria-label")
    assert root.get("viewBox", "").startswith("0 0 340 ") and root.get("width") is None
    assert "var(--student)" in chart and "var(--muted)" in chart
    assert "#0a0b" not in chart, "a placeholder colour was left"
    assert "<style" not in chart and "<metadata" not in chart and "<!--" not in chart
    assert list(root.iter("text")), "letters stay text"
    assert len(chart) < 40_000


def test_the_same_twice():
    assert all_charts() == all_charts()


def test_nothing_to_draw():
    assert charts.training({}, "loss", "Loss", {}) is None
    assert charts.training({"student": curve([])}, "loss", "Loss", {"student": 1.0}) is None
    assert charts.intervals({}, "KL", as_percent=False) is None
    assert charts.by_position([], {}, "KL") is None
    assert charts.by_position([1, 2], {"student": [1.0, 2.0]}, "KL") is None
    assert charts.reliability({}) is None
    assert charts.reliability({"student": {"count": [3], "confidence": [0.5], "accuracy": [0.5]}}) is None
    assert charts.topics([]) is None and charts.topics([{"topic": "x", "agreement": 3}]) is None


def test_degenerate_values():
    """One step, equal values, zeros, a single bin, an interval of no width."""
    assert charts.training({"student": curve([2.0])}, "loss", "Loss", {}) is not None
    assert charts.training({"student": curve([0.0, 0.0])}, "loss", "Loss", {}) is not None
    assert charts.by_position([1, 2], {"student": [0.0]}, "KL") is not None
    assert charts.intervals({"student": (0.5, 0.5, 0.5)}, "KL", as_percent=True) is not None


def test_topics_of_a_row_or_two_get_no_interval():
    agreement = {"student": [0.5, 0.5, 0.5]}
    few, enough = ({"topic": "x", "positions": 5, "rows": rows, "agreement": agreement} for rows in (2, 5))
    assert charts.topics([few]).count("stroke-opacity: 0.4") < charts.topics([enough]).count("stroke-opacity: 0.4")


def test_hostile_labels_are_text():
    rows = [
        {"topic": name, "positions": 5, "agreement": {"student": [0.5, 0.4, 0.6]}}
        for name in ("<script>alert(1)</script>", "$\\frac{", "--><b>", "\u202eevil", "語" * 40, "", '" onload="x')
    ]
    chart = charts.topics(rows)
    root = ElementTree.fromstring(chart)
    assert "<script" not in chart and "<b>" not in chart
    assert not [key for element in root.iter() for key in element.keys() if key.startswith("on")]  # noqa: SIM118
    shown = "".join(text for element in root.iter() for text in element.itertext())
    assert "$\\frac{" in shown and "\\u202eevil" in shown and "語" in shown
    titled = ElementTree.fromstring(charts.intervals({"student": (1, 0, 2)}, '"><script>', as_percent=False))
    assert titled.get("aria-label") == '"><script>'


def test_long_curves_are_thinned_and_keep_their_mean():
    xs, ys = charts.thin([float(n) for n in range(10_007)], [float(n % 7) for n in range(10_007)])
    assert len(xs) == len(ys) <= charts.POINTS
    assert sum(ys) / len(ys) == pytest.approx(3.0, abs=0.05)


def test_running_mean_does_not_lag():
    line = [float(n) for n in range(100)]
    smooth = charts.smooth(line)
    assert smooth[20:80] == pytest.approx(line[20:80])
    assert charts.smooth([1.0]) == [1.0]
    step = charts.smooth([0.0] * 100 + [1.0] * 100)
    assert step[99] < 0.5 < step[100]


def test_nothing_of_the_user_is_touched_and_pyplot_stays_out():
    """The user's settings neither leak into the charts nor are changed by them; no window system is asked for."""
    code = """
import sys, matplotlib
matplotlib.rcParams["lines.linewidth"] = 7.25
matplotlib.rcParams["text.usetex"] = True
from limbeck.report import charts
assert "matplotlib.figure" not in sys.modules
svg = charts.intervals({"student": (0.4, 0.3, 0.5)}, "KL", as_percent=False)
assert "stroke-width: 7.25" not in svg
assert matplotlib.rcParams["lines.linewidth"] == 7.25 and matplotlib.rcParams["text.usetex"] is True
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_matplotlib_is_loaded_by_drawing_only():
    code = "import sys, limbeck.report.page; assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
