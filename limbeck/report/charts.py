"""Charts as inline SVG. Colours are the page's CSS variables, so they follow its light, dark and printed dress; letters
stay text in the page's own font.

matplotlib is imported when the first chart is drawn: nothing else in the package needs it, and it takes a second.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from limbeck.report.format import number, percent
from limbeck.text.visible import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from limbeck.report.collect import Curve

WIDTH, HEIGHT = 340.0, 226.0  # CSS pixels at scale 1: about a phone's width
POINTS = 240
FEW = 10  # positions below which a reliability bin says nothing
MOST_TOPICS = 10
TOPIC_ROWS = 5  # fewer rows than these resample to an interval that is far too narrow
MARKERS = {"teacher": "o", "student": "o", "twin": "s"}
ROUND = [1, 2, 5, 10]  # steps between ticks

# Colours that no chart would use, replaced by variables of the page.
COLOURS = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(("ink", "muted", "line", "teacher", "student", "twin", "surface"), 0x10)
}
STYLE: Any = {  # matplotlib names its keys in a type of its own
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": COLOURS["ink"],
    "font.size": 11.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 11.0,
    "axes.labelpad": 6.0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.08,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "ytick.major.size": 0.0,
    "xtick.major.size": 3.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@contextlib.contextmanager
def drawing(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Figure]:
    """A figure of the given size in CSS pixels, under our style and no one else's."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's font lacks: the browser's has them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def svg(figure: Figure, title: str) -> Markup:
    """The figure as an element of a page, named for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)  # names of groups; clips and markers are referred to
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{Markup.escape(title)}" {box[0]}'
    head += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(head + text[text.index(">") + 1 :])


# ---- training --------------------------------------------------------------------------------------------------------


def training(curves: Mapping[str, Curve], name: str, label: str, marks: Mapping[str, float]) -> Markup | None:
    """One measure over the steps of student and twin: what each step gave, faint, and its running mean. `marks` are
    held-out values by model, drawn across. None when no step measured it."""
    drawn = {role: thin(*curve.points(name)) for role, curve in curves.items()}
    drawn = {role: points for role, points in drawn.items() if points[0]}
    if not drawn:
        return None
    with drawing() as figure:
        axes = figure.add_subplot()
        means = {role: smooth(values) for role, (_, values) in drawn.items()}
        for role, (steps, values) in drawn.items():
            if len(values) > 1:
                axes.plot(steps, values, color=COLOURS[role], alpha=0.35, linewidth=0.9)
            axes.plot(steps, means[role], color=COLOURS[role], marker="o" if len(values) == 1 else None)
        axes.set_ylim(*_limits([value for mean in means.values() for value in mean] + list(marks.values())))
        _marks(axes, marks)
        axes.set_xlabel("step")
        _whole_steps(axes)
        return svg(figure, f"{label} by training step")


def _marks(axes: Axes, marks: Mapping[str, float]) -> None:
    """Dashed lines across: the highest is named above, at the right, the others below, at the left, where the falling
    curves leave room."""
    for place, (role, value) in enumerate(sorted(marks.items(), key=lambda entry: -entry[1])):
        axes.axhline(value, color=COLOURS[role], linewidth=1.0, dashes=(4, 3))
        axes.annotate(
            f"{role}, held out: {value:.3f}",
            (0.0 if place else 1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(4, -4) if place else (-2, 3),
            textcoords="offset points",
            ha="left" if place else "right",
            va="bottom" if place == 0 else "top",
            color=COLOURS[role],
            fontsize=10.5,
        )


def _whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for the running means and the marks; the spikes of single steps may leave the picture."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS points: means over runs of equal length."""
    run = max(math.ceil(len(xs) / POINTS), 1)
    parts = [slice(start, start + run) for start in range(0, len(xs), run)]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return [mean(xs[part]) for part in parts], [mean(ys[part]) for part in parts]


def smooth(values: Sequence[float]) -> list[float]:
    """A running mean that does not lag: Gaussian weights to both sides, over about a twentieth of the curve."""
    width = max(len(values) / 60, 0.5)
    reach = math.ceil(3 * width)
    weights = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(-reach, reach + 1)]
    out = []
    for place in range(len(values)):
        low = max(place - reach, 0)
        near = values[low : place + reach + 1]
        share = weights[low - place + reach :][: len(near)]
        out.append(sum(a * b for a, b in zip(near, share, strict=True)) / sum(share))
    return out


# ---- evaluation ------------------------------------------------------------------------------------------------------


def intervals(parts: Mapping[str, Sequence[float]], title: str, *, as_percent: bool) -> Markup | None:
    """Means with 95% intervals, one line per model."""
    rows = [(role, tuple(parts[role])) for role in ("student", "twin") if role in parts]
    if not rows:
        return None
    show = percent if as_percent else "{:.3f}".format
    with drawing(WIDTH, 34.0 + 30.0 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        for place, (role, (mean, low, high)) in enumerate(rows):
            axes.plot([low, high], [-place, -place], color=COLOURS[role], linewidth=3.0, alpha=0.45)
            axes.plot([mean], [-place], MARKERS[role], color=COLOURS[role], markersize=7.5)
            axes.annotate(
                show(mean), (mean, -place), (0, 8), textcoords="offset points", ha="center", va="bottom", fontsize=11.0
            )
        axes.set_ylim(-len(rows) + 0.5, 0.75)
        axes.set_yticks([-place for place in range(len(rows))], [role for role, _ in rows])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"], labelsize=11.0)
        axes.margins(x=0.12)
        _few_ticks(axes, show=show if as_percent else None)
        return svg(figure, title)


def _few_ticks(axes: Axes, *, show: Any = None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if show is not None:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def two_axes(models: Mapping[str, tuple[float, float]]) -> Markup | None:
    """KL to the teacher against perplexity of the text, a dot a model: the lower left is better on both."""
    if len(models) < 2:
        return None
    with drawing() as figure:
        axes = figure.add_subplot()
        for name, (x, y) in models.items():
            axes.plot([x], [y], MARKERS[name], color=COLOURS[name], markersize=8.0)
            axes.annotate(name, (x, y), (0, 8), textcoords="offset points", ha="center", color=COLOURS[name])
        axes.margins(0.18, 0.25)
        axes.set_xlabel("KL to the teacher, nats per token")
        axes.set_ylabel("perplexity of the text")
        axes.grid(visible=True, axis="x")
        _few_ticks(axes)
        return svg(figure, "Closeness to the teacher against perplexity of the text")


def by_position(edges: Sequence[float], values: Mapping[str, Sequence[float]], label: str) -> Markup | None:
    """Means by place in the text, on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    roles = [role for role in ("student", "twin") if len(values.get(role, ())) == len(edges) - 1 > 0]
    if not roles or min(edges) < 1:
        return None
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        centres = [math.sqrt(low * max(high - 1, low)) for low, high in itertools.pairwise(edges)]
        for role in roles:
            axes.plot(centres, values[role], color=COLOURS[role], marker=MARKERS[role], markersize=3.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("place in the text, tokens")
        axes.xaxis.set_major_locator(FixedLocator([4**power for power in range(12)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        return svg(figure, f"{label} by place in the text")


def reliability(models: Mapping[str, Mapping[str, Sequence[float]]]) -> Markup | None:
    """Accuracy against confidence. A dot's area is the share of positions in its bin."""
    lines = {name: _reliable(bins) for name, bins in models.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1.0, dashes=(2, 3))
        for name, points in lines.items():
            total = sum(share for _, _, share in points)
            xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
            axes.plot(xs, ys, color=COLOURS[name], linewidth=1.4)
            areas = [10 + 160 * share / total for *_, share in points]
            axes.scatter(xs, ys, s=areas, color=COLOURS[name], marker=MARKERS[name], linewidths=0)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        _percent_axes(axes)
        return svg(figure, "Accuracy by confidence")


def _percent_axes(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol="%"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol="%"))


def _reliable(bins: Mapping[str, Sequence[float]]) -> list[tuple[float, float, float]]:
    columns = [bins.get(key) for key in ("confidence", "accuracy", "count")]
    columns = [column if isinstance(column, list) else [] for column in columns]
    rows = [[number(value) for value in row] for row in zip(*columns, strict=False)]
    return [(x, y, n) for x, y, n in rows if x is not None and y is not None and n is not None and n >= FEW]


def topics(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Agreement of student and twin with the teacher by topic, the largest topics, with 95% intervals
    where they have enough rows for one."""
    shown = sorted(rows, key=lambda row: -(number(row.get("positions")) or 0))[:MOST_TOPICS]
    shown = [row for row in shown if _triple(row, "student")]
    if not shown:
        return None
    shown.sort(key=lambda row: _triple(row, "student")[0])
    with drawing(WIDTH, max(46.0 + 24.0 * len(shown), 130.0)) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        for place, row in enumerate(shown):
            for role, shift in (("student", 0.13), ("twin", -0.13)):
                if part := _triple(row, role):
                    mean, low, high = part
                    if (number(row.get("rows")) or 0) >= TOPIC_ROWS:
                        axes.plot([low, high], [place + shift] * 2, color=COLOURS[role], linewidth=2.2, alpha=0.4)
                    axes.plot([mean], [place + shift], MARKERS[role], color=COLOURS[role], markersize=5.2)
        axes.set_yticks(range(len(shown)), [shortened(str(row.get("topic")), 22) for row in shown])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        _few_ticks(axes, show=percent)
        return svg(figure, "Agreement with the teacher by topic")


def _triple(row: Mapping[str, Any], role: str) -> tuple[float, ...]:
    agreement = row.get("agreement")
    return triple(agreement.get(role)) if isinstance(agreement, dict) else ()


def scores(found: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Markup | None:
    """Bars of shares with 95% intervals, a group for every score: `found[score][model]` is (mean, low, high)."""
    found = {name: models for name, models in found.items() if models}
    if not found:
        return None
    lines = [(name, role) for name, models in found.items() for role in models]
    with drawing(WIDTH, 44.0 + 20.0 * len(lines) + 10.0 * len(found)) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        place, ticks = 0.0, []
        for name, models in found.items():
            ticks.append((place - (len(models) - 1) / 2, name))
            for role, (mean, low, high) in models.items():
                axes.barh(place, mean, 0.72, color=COLOURS[role], alpha=0.75)
                axes.plot([low, high], [place, place], color=COLOURS["ink"], linewidth=1.6)
                axes.annotate(percent(mean), (max(high, mean), place), (5, 0), textcoords="offset points", va="center")
                place -= 1.0
            place -= 0.5
        axes.set_xlim(0, 1.18)
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"], labelsize=11.0)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
        return svg(figure, title)


def triple(value: Any) -> tuple[float, ...]:
    """(mean, low, high), or () when the value is not three numbers."""
    values = [number(part) for part in value] if isinstance(value, list | tuple) else []
    numbers = tuple(part for part in values if part is not None)
    return numbers if len(numbers) == len(values) == 3 else ()
