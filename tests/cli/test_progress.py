"""Progress lines are few; bars show what lines show."""

import io

from rich.console import Console

from limbeck.cli import progress
from limbeck.cli.progress import ProgressLines, bars, speed
from limbeck.types import Progress


def at(done: float, stage: str = "label", **values: float) -> Progress:
    return Progress(stage, done, 1000, "tokens", 50.0, 185.0, values)


def test_at_most_one_line_per_stage_and_interval(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    written: list[str] = []
    lines = ProgressLines(written.append)
    for second in range(25):
        now[0] = float(second)
        lines.on_progress(at(second * 10))
        lines.on_progress(at(second * 10, "train"))
    lines.on_progress(at(1000))
    lines.on_progress(at(1000))
    assert [line.split()[:2] for line in written] == [
        ["label", "0%"],
        ["train", "0%"],
        ["label", "10%"],
        ["train", "10%"],
        ["label", "20%"],
        ["train", "20%"],
        ["label", "100%"],
    ]


def test_speed():
    assert speed(at(1, loss=1.23456)) == "50 tokens/s  loss 1.235  3 min 05 s left"
    assert speed(at(1000)) == "50 tokens/s"
    steps = Progress("train", 1, 9, "steps", 0.5, 16.0, {"tokens_per_second": 2048.2, "grad_norm": 3.0})
    assert speed(steps) == "2,048 tokens/s  16 s left"
    assert speed(Progress("data", 9, 9, "rows", 2962.4, 0.0)) == "2,962 rows/s"


def test_bars():
    out = io.StringIO()
    with bars(Console(file=out, width=120, force_terminal=True)) as shown:
        shown.on_progress(at(500))
        shown.on_message("[bold]\x1b[2J kept as text")
        shown.on_progress(at(1000))
    text = out.getvalue()
    assert "[bold]\\x1b[2J kept as text" in text
    assert "100%" in text
    assert "50 tokens/s" in text


def test_a_job_of_nothing():
    written: list[str] = []
    ProgressLines(written.append).on_progress(Progress("train", 0, 0, "steps", 0.0, 0.0))
    assert written == ["train    100% of 0 steps  0.00 steps/s"]
