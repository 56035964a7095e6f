"""Capability transfer as a chart: a bar for every arm, its interval, and a dot for every seed."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from frontier import dressed
from matplotlib.figure import Figure

from limbeck.report.charts import COLOURS, STYLE


def draw(found: dict[str, Any], names: dict[str, str]) -> str:
    """`found` as `transfer.compare` returns it; `names` of its models, from top to bottom."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(720 / 72, 250 / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        for place, model in enumerate(names):
            mean, low, high = found["models"][model]["pass@1"]
            colour = COLOURS["teacher" if model == "teacher" else "student"]
            axes.barh(-place, mean, 0.66, color=colour, alpha=0.65)
            axes.plot([low, high], [-place, -place], color=COLOURS["ink"], linewidth=1.8)
            seeds = found["seeds"].get(model, [])
            axes.plot(seeds, [-place - 0.2] * len(seeds), "o", color=COLOURS["ink"], markersize=3.2)
            end = max([high, *seeds])
            axes.annotate(f"{100 * mean:.1f} %", (end, -place), (7, 0), textcoords="offset points", va="center")
        axes.set_yticks([-place for place in range(len(names))], list(names.values()))
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_xlim(0, 1.1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("pass@1 on new problems; line: 95% interval over problems; dots: seeds")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return dressed(buffer.getvalue())


__all__ = ["draw"]
