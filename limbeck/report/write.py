"""The report stage: one HTML page from the files of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.report.collect import collect
from limbeck.report.page import render
from limbeck.system.atomic import atomic_write

if TYPE_CHECKING:
    from pathlib import Path


def run_report(run: Path) -> Path:
    """Write RUN/report.html from what the run folder holds, and return its path. No model is opened.

    Raises RunDirError when `run` is no run folder, BudgetError when the disk is full.
    """
    page = run / "report.html"
    atomic_write(page, render(collect(run)))
    return page
