"""What is shown: numbers for people, and nothing that could steer a terminal."""

import io

import pytest
from rich.console import Console

from limbeck.check.findings import CheckResult
from limbeck.cli import tables
from limbeck.label.request_cost import RequestCost
from limbeck.pipeline.show import RunView, TokenView, TraceView
from limbeck.system.rundir import StageRecord

SCORES = {"kl": 0.41, "agreement": 0.7234, "perplexity": 12.34, "ece": 0.021, "parameters": 99_000_000}
SCORES |= {"bytes": 198_000_000, "tokens_per_second": 812.4}
COST = {"seconds": 125.0, "peak_bytes": 3 * 2**30, "disk_bytes": 5 * 2**20}
SUMMARY = {
    "teacher": SCORES | {"kl": 0.0},
    "student": SCORES,
    "twin": SCORES | {"kl": 0.9, "ece": None},
    "verdict": {"sentence": "Distillation helped."},
    "stages": {
        "label": {"estimated": COST, "took": COST | {"seconds": 5.25}},
        "train": {"estimated": None, "took": COST},
    },
}


def shown(renderable, *, colour: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=140, force_terminal=colour, color_system="standard" if colour else None).print(renderable)
    return out.getvalue()


def test_result():
    text = shown(tables.result(SUMMARY))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["student"] == ["student", "0.410", "72.3%", "12.34", "0.021", "99.0M", "189", "MiB", "812"]
    assert rows["twin"][4] == "-"
    assert rows["label"] == ["label", "2", "min", "05", "s", "5.2", "s", *["3.0", "GiB"] * 2, *["5.0", "MiB"] * 2]
    assert rows["train"][1] == "-"
    assert text.index("student") < text.index("Distillation helped.") < text.index("label")


def test_a_partial_summary():
    assert shown(tables.result({"name": "x"})).strip() == ""


def trace_view(stored: bool = True) -> TraceView:
    tokens = (
        TokenView(0, "Hi", False),
        TokenView(1, " [bold]", True, (("[bold]", 0.5), (" [bold]", 0.25)), 0.25, 0.125),
        TokenView(2, "\x1b[2J", True, (("\x1b[2J", 0.9),), None, 0.1),
    )
    return TraceView(3, 10, "abc", "train", "maths", "f.jsonl:4", stored, tokens)


def test_trace():
    text = shown(tables.trace(trace_view()))
    assert "row 3 of 10  id abc  train  topic maths  from f.jsonl:4" in text
    assert "\x1b" not in text
    assert "' [bold]'" in text, "markup of the model is text"
    line = next(line for line in text.splitlines() if line.strip().startswith("1 "))
    assert line.split() == ["1", "'", "[bold]'", "25.0%", "'[bold]'", "50.0%", "'", "[bold]'", "25.0%", "12.5%"]
    assert "\\x1b[2J" in text
    assert next(line for line in text.splitlines() if line.strip().startswith("2 ")).split()[2] == "-"


def test_supervised_tokens_are_coloured():
    text = shown(tables.trace(trace_view()), colour=True)
    assert "\x1b[2mHi" in text
    assert "\x1b[33m [bold]" in text, "yellow: the teacher would have said something else"
    assert "\x1b[32m\\x1b[2J" in text, "green: its first choice"


def test_a_trace_without_distributions():
    assert "No distributions are stored" in shown(tables.trace(trace_view(stored=False)))


def test_run():
    view = RunView(
        path="runs/x",
        name="x",
        teacher="t",
        student={"kind": "prune", "layers": 2},
        stages=(StageRecord("data", "0123456789abcdef", 2.0, 2**20, 2**10),),
        bytes={"data": 1024},
        training={"student": {"step": 5, "tokens": 10, "loss": 1.23456, "kl": None}},
        summary=SUMMARY,
    )
    text = shown(tables.run(view))
    for part in (
        "x: t into kind prune, layers 2",
        "0123456789abcdef",
        "data 1.0 KiB",
        "step 5  tokens 10  loss 1.235",
        "helped",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("paid", "currency", "seconds", "said"),
    [
        ((0.5, 1.25), "EUR", 90.0, ["0.50 EUR", "1.25 EUR", "At least 1 min 30 s"]),
        ((0.0, 0.0), "USD", 0.0, ["0.00 USD", "nothing is charged", "No limit per minute is set"]),
        ((None, None), "", 0.0, ["unknown", "teacher.prices is not set"]),
    ],
)
def test_requests(paid, currency, seconds, said):
    cost = RequestCost(3, 40, 60, 8000, 16000, *paid, currency, seconds)
    text = shown(tables.check_facts(CheckResult([], [], [], {}, cost)))
    assert all(part in text for part in [*said, "16,000", "likely", "at most"])
