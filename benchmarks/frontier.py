"""The frontier of stored targets as a chart: bytes per position against what their gradient loses."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from limbeck.report.charts import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {"sampled": ("student", "o"), "hybrid": ("twin", "s"), "top_k": ("teacher", "^")}
LIGHT = {"ink": "#1f2328", "muted": "#59636e", "line": "#d1d9e0", "surface": "#ffffff"}
DARK = {"ink": "#f0f6fc", "muted": "#9198a1", "line": "#3d444d", "surface": "#0d1117"}
BOTH = {"student": "#2f81f7", "twin": "#d29922", "teacher": "#8957e5"}
TICKS = {10.0**-n * m: f"{1 - 10.0**-n * m:.{n}f}" for n in (1, 2, 3, 4) for m in (1, 2, 5)}


def draw(points: list[tuple[str, float, float, float]]) -> str:
    """`points` are (name, bytes per position, cosine of dL/dh, cosine of dL/dW)."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(960 / 72, 400 / 72), dpi=72, layout="constrained")
        for column, (axes, label) in enumerate(zip(figure.subplots(1, 2), ("dL/dh", "dL/dW"), strict=True)):
            _panel(axes, [(name, at, max(1 - cosines[column], 1e-5)) for name, at, *cosines in points], label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return dressed(buffer.getvalue())


def _panel(axes: Axes, points: list[tuple[str, float, float]], label: str) -> None:
    for kind, (colour, marker) in KINDS.items():
        chosen = sorted((size, loss, name) for name, size, loss in points if _plain(name, kind))
        axes.plot([x for x, _, _ in chosen], [y for _, y, _ in chosen], marker=marker, color=COLOURS[colour])
        for x, y, name in chosen:
            axes.annotate(name.removeprefix(kind).strip(), (x, y), (4, 5), textcoords="offset points", fontsize=9)
        x, y, _ = chosen[0]
        axes.annotate(kind, (x, y), (0, -16), textcoords="offset points", color=COLOURS[colour], ha="center")
    others = [point for point in points if not any(_plain(point[0], kind) for kind in KINDS)]
    axes.plot([x for _, x, _ in others], [y for _, _, y in others], "x", color=COLOURS["muted"])
    low, high = min(y for *_, y in points), max(y for *_, y in points)
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(6, 800)
    axes.set_ylim(low / 1.3, high * 1.3)
    if label == "dL/dh":
        for x, y in ((12, 0.02), (24, 0.01)):
            axes.plot([x], [y], "+", color=COLOURS["ink"], markersize=12)
            axes.annotate("goal", (x, y), (6, -10), textcoords="offset points", fontsize=9)
    axes.set(xlabel="bytes per position", title=f"cosine of {label} to the full teacher's")
    axes.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
    ticks = {tick: text for tick, text in TICKS.items() if low / 1.5 < tick < high * 1.5}
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.invert_yaxis()
    _label(axes, others)


def _label(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """A name beside each point, moved down while it would stand on another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout is made, so that distances are known
    placed: list[tuple[float, float, float]] = []
    for name, x, y in sorted(points, key=lambda point: (point[2], point[1])):
        left, middle = axes.transData.transform((x, y))
        shift, width = 0.0, 4.2 * len(name) + 10
        while any(abs(middle + shift - b) < 10 and left < a + w and a < left + width for a, b, w in placed):
            shift -= 2
        placed.append((left, middle + shift, width))
        style = {"textcoords": "offset points", "fontsize": 7.5, "color": COLOURS["muted"], "va": "center"}
        axes.annotate(name, (x, y), (5, shift), **style)


def _plain(name: str, kind: str) -> bool:
    return re.fullmatch(rf"{kind} [0-9/]+", name) is not None


def dressed(text: str) -> str:
    """Colours follow the reader's light or dark dress; letters stay text."""
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for name, colour in {**LIGHT, **BOTH}.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return text.replace(">", f">{style}", 1) + "\n"


__all__ = ["draw", "dressed"]
