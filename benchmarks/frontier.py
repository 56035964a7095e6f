"""The frontier of stored targets as a chart: bytes per position against what their gradient loses."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

from limbeck.report.charts import COLOURS, STYLE

KINDS = {"sampled": ("student", "o"), "hybrid": ("twin", "s"), "top_k": ("teacher", "^")}
LIGHT = {"ink": "#1f2328", "muted": "#59636e", "line": "#d1d9e0", "surface": "#ffffff"}
DARK = {"ink": "#f0f6fc", "muted": "#9198a1", "line": "#3d444d", "surface": "#0d1117"}
BOTH = {"student": "#2f81f7", "twin": "#d29922", "teacher": "#8957e5"}
TICKS = {0.0: "1", 0.005: "0.995", 0.01: "0.99", 0.02: "0.98", 0.05: "0.95", 0.1: "0.9", 0.2: "0.8"}


def draw(points: list[tuple[str, float, float]]) -> str:
    """`points` are (name, bytes per position, cosine of dL/dh)."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(680 / 72, 380 / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for kind, (colour, marker) in KINDS.items():
            chosen = sorted((size, 1 - cosine, name) for name, size, cosine in points if _plain(name, kind))
            axes.plot([x for x, _, _ in chosen], [y for _, y, _ in chosen], marker=marker, color=COLOURS[colour])
            for x, y, name in chosen:
                axes.annotate(name.removeprefix(kind).strip(), (x, y), (4, 5), textcoords="offset points", fontsize=9)
            x, y, _ = chosen[0]
            axes.annotate(kind, (x, y), (0, 16), textcoords="offset points", color=COLOURS[colour], ha="center")
        others = [(name, size, cosine) for name, size, cosine in points if not any(_plain(name, k) for k in KINDS)]
        axes.plot([s for _, s, _ in others], [1 - c for _, _, c in others], "x", color=COLOURS["muted"])
        for name, size, cosine in others:
            axes.annotate(
                name, (size, 1 - cosine), (5, 3), textcoords="offset points", fontsize=8, color=COLOURS["muted"]
            )
        for size, loss in ((12, 0.02), (24, 0.01)):
            axes.plot([size], [loss], "+", color=COLOURS["ink"], markersize=12)
            axes.annotate("goal", (size, loss), (6, -10), textcoords="offset points", fontsize=9)
        axes.set(
            xscale="log", yscale="log", xlabel="bytes per position", ylabel="cosine of dL/dh to the full teacher's"
        )
        axes.set_xticks([6, 12, 24, 48, 96, 192, 384], ["6", "12", "24", "48", "96", "192", "384"])
        axes.set_yticks([tick for tick in TICKS if tick], [label for tick, label in TICKS.items() if tick])
        axes.minorticks_off()
        axes.invert_yaxis()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _dressed(buffer.getvalue())


def _plain(name: str, kind: str) -> bool:
    return re.fullmatch(rf"{kind} [0-9/]+", name) is not None


def _dressed(text: str) -> str:
    """Colours follow the reader's light or dark dress; letters stay text."""
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for name, colour in {**LIGHT, **BOTH}.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return text.replace(">", f">{style}", 1) + "\n"


__all__ = ["draw"]
