"""The report as one HTML file: everything in it is text of ours, numbers, or escaped text of others."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from limbeck.report import charts
from limbeck.report.collect import MODELS, ROLES, RunFiles, collect, dig
from limbeck.report.export_table import export_table
from limbeck.report.format import MISSING, number, percent, perplexity, signed, times
from limbeck.report.funnel import funnel
from limbeck.report.sample_cards import answer_cards
from limbeck.report.task_table import task_table
from limbeck.system.atomic import atomic_write
from limbeck.system.units import count, duration, size
from limbeck.text.visible import LINES, shortened, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LONGEST_RECIPE = 40_000


@dataclass(frozen=True)
class Tile:
    """A number to remember."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows, and which models are in it."""

    title: str
    chart: Markup
    caption: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasureRow:
    """A row of the table of scores: one cell per model."""

    name: str
    meaning: str
    cells: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class BarChart:
    """One quantity of all models, as bars: (model, share of the longest in percent, text)."""

    title: str
    note: str
    rows: tuple[tuple[str, float, str], ...]


def run_report(run: Path) -> Path:
    """Write RUN/report.html from what the run folder holds, and return its path. No model is opened.

    Raises RunDirError when `run` is no run folder, BudgetError when the disk is full.
    """
    page = run / "report.html"
    atomic_write(page, render(collect(run)))
    return page


def render(files: RunFiles) -> str:
    """The whole page. The same files give the same page."""
    script, style = _asset("page.js"), _asset("colours.css") + _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(_asset("page.html.j2")).render(
        script=Markup(script),
        style=Markup(style),
        script_hash=digest,
        models=[name for name in MODELS if files.get(name)],
        head=headline(files),
        verdict=verdict(files),
        tiles=tiles(files),
        measures=measures(files),
        figures=evaluation_figures(files) + training_figures(files),
        bars=bars(files),
        tasks=task_table(files.tasks),
        funnel=funnel(files.curated),
        exports=export_table(files.get("exports")),
        cards=answer_cards(files.answers, marked=bool(files.get("teacher"))),
        marked=bool(files.get("teacher")),
        stages=stages(files),
        recipe=visible(files.recipe_text, LONGEST_RECIPE, keep=LINES),
        environment=_facts(files.get("environment")),
        data=data_facts(files),
        warnings=[visible(text, 1000, keep=LINES) for text in warnings(files)],
        made=files.made,
    )
    return html.encode("utf-8", "replace").decode()


def _asset(name: str) -> str:
    return (resources.files("limbeck.report") / name).read_text(encoding="utf-8")


# ---- words -----------------------------------------------------------------------------------------------------------


def headline(files: RunFiles) -> dict[str, str]:
    """Who was distilled into whom, and how much smaller that is."""
    teacher = str(dig(files.recipe, "teacher", "path") or dig(files.recipe, "teacher", "name") or "teacher")
    name = str(files.get("name") or dig(files.recipe, "name") or "student")
    return {
        "teacher": shortened(teacher.rstrip("/").rsplit("/", 1)[-1], 60),
        "teacher_path": shortened(teacher, 200),
        "student": shortened(name, 64),
        "scope": visible(str(files.get("scope") or dig(files.recipe, "scope") or ""), 600, keep=LINES),
        "how": _how(files),
    }


def _how(files: RunFiles) -> str:
    kind, keep = dig(files.recipe, "student", "kind"), dig(files.recipe, "student", "keep")
    layers = len(keep) if isinstance(keep, list) else dig(files.recipe, "student", "layers")
    born = {
        "prune": f"the teacher with {layers} of its layers kept" if layers else "the teacher with fewer layers",
        "scratch": "a new model of the teacher's architecture"
        if dig(files.recipe, "student", "like") is None
        else "a new model",
        "pretrained": f"the pretrained model {shortened(str(dig(files.recipe, 'student', 'path')), 80)}",
    }.get(str(kind), "")
    big, small = (number(files.get(name, "parameters")) for name in ("teacher", "student"))
    sizes = f"{count(big)} parameters became {count(small)}" if big and small else ""
    rows = number(files.detail("rows"))
    measured = f"Measured on {rows:,.0f} held-out rows that neither student nor twin has seen." if rows else ""
    sentence = f"{sizes}: {born}." if sizes and born else f"{sizes or born}." if sizes or born else ""
    return " ".join(part for part in (sentence[:1].upper() + sentence[1:], measured) if part)


STATES = ("good", "mixed", "open", "bad")


def verdict(files: RunFiles) -> dict[str, Any] | None:
    """The verdict's colour, its claim, what follows it, and the interval charts. None before evaluation."""
    sentence = files.get("verdict", "sentence")
    if not isinstance(sentence, str):
        return None
    said = [files.get("verdict", key) for key in ("claim", "figures", "advice")]
    if not all(isinstance(text, str) for text in said):  # a run of version 0.1
        claim, where, figures = [*sentence.split(": ", 2), "", ""][:3]
        said = [f"{claim}: {where}", figures, ""]
    claim, _, where = visible(said[0], 1000).partition(": ")
    figures, advice = (visible(text, 1000) for text in said[1:])
    parts = _verdict_parts(files)
    rest = [where, *([] if parts else [figures]), advice]  # the charts show the figures
    return {
        "state": _state(files),
        "claim": claim,
        "rest": [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in rest if text],
        "parts": parts,
    }


def _state(files: RunFiles) -> str:
    state, helped = (files.get("verdict", key) for key in ("state", "helped"))
    if isinstance(state, str) and state in STATES:
        return state
    return {True: "good", False: "bad"}.get(helped, "open") if isinstance(helped, bool) else "open"


def _verdict_parts(files: RunFiles) -> list[dict[str, Any]]:
    parts = []
    for key, title, better, as_percent in (
        ("kl", "KL to the teacher", "nats per token, lower is closer", False),
        ("agreement", "Agreement with the teacher's first choice", "higher is closer", True),
        ("ce", "Cross-entropy of the text itself", "nats per token, lower is better", False),
    ):
        found = files.get("verdict", key)
        means = {role: values for role in ROLES if (values := charts.triple(dig(found, role)))}
        chart = charts.intervals(means, title, as_percent=as_percent)
        if chart is None:
            continue
        difference = charts.triple(dig(found, "difference"))
        parts.append({"title": title, "better": better, "chart": chart, "difference": _gap(difference, as_percent)})
    return [*parts, *_both_axes(files)]


def _both_axes(files: RunFiles) -> list[dict[str, Any]]:
    """One picture of both, where a teacher was measured too."""
    found = {name: [number(files.get(name, key)) for key in ("kl", "perplexity")] for name in MODELS}
    points = {name: (x, y) for name, (x, y) in found.items() if x is not None and y is not None}
    chart = charts.two_axes(points) if "teacher" in points else None
    words = {"title": "Closeness and usefulness", "better": "further left is closer, further down is better"}
    return [] if chart is None else [{**words, "chart": chart, "difference": ""}]


def _gap(difference: tuple[float, ...], as_percent: bool) -> str:
    if not difference:
        return ""
    scale, digits, unit = (100.0, 1, " points") if as_percent else (1.0, 3, "")
    mean, low, high = (signed(scale * value, digits) for value in difference)
    return f"{mean}{unit} (95% interval {low} to {high})"


def tiles(files: RunFiles) -> list[Tile]:
    """At most four numbers; those that were not measured are left out."""
    out = []
    agreement, twin = (number(files.get(role, "agreement")) for role in ROLES)
    if agreement is not None:
        note = f"twin {percent(twin)}" if twin is not None else ""
        out.append(Tile(percent(agreement), "of the teacher's first choices", note))
    kl, twin = (number(files.get(role, "kl")) for role in ROLES)
    if kl is not None:
        out.append(Tile(f"{kl:.3f}", "nats of KL to the teacher", f"twin {twin:.3f}" if twin is not None else ""))
    big, small = (number(files.get(name, "parameters")) for name in ("teacher", "student"))
    if big and small:
        out.append(Tile(percent(small / big), "of the teacher's parameters", f"{count(small)} of {count(big)}"))
    slow, fast, same = (number(files.get(name, "tokens_per_second")) for name in MODELS)
    # Student and twin have one shape: a ratio that is no larger than theirs is noise.
    if slow and fast and _ratio(fast, slow) > _ratio(fast, same or fast):
        note = f"{fast:,.0f} against {slow:,.0f} tokens/s"
        out.append(Tile(times(fast / slow), "the teacher's reading speed", note))
    return out


def _ratio(a: float, b: float) -> float:
    """How many times the larger is the smaller."""
    return max(a, b) / min(a, b) if min(a, b) > 0 else 0.0


MEASURES: tuple[tuple[str, str, str, tuple[str, ...], Callable[[float], str]], ...] = (
    ("Fidelity", "KL to the teacher", "nats per token; 0 is the teacher itself", ("kl",), "{:.3f}".format),
    ("Fidelity", "Agreement", "how often the first choice is the teacher's", ("agreement",), percent),
    ("Fidelity", "Total variation", "probability mass placed elsewhere than the teacher", ("tv",), percent),
    ("Fidelity", "Repeated errors", "of the teacher's wrong first choices", ("repeated_errors",), percent),
    ("Accuracy", "Perplexity", "of the true text", ("perplexity",), perplexity),
    ("Accuracy", "Accuracy", "how often the first choice is the true next token", ("accuracy",), percent),
    ("Accuracy", "ECE", "how far confidence is from accuracy", ("ece",), "{:.3f}".format),
    ("Cost", "Making", "labelling and training", ("making_seconds",), duration),
    ("Cost", "Parameters", "tied ones counted once", ("parameters",), count),
    ("Cost", "Weights on disk", "", ("bytes",), size),
    ("Cost", "Memory", "weights and one forward", ("speed", "memory_bytes"), size),
    ("Cost", "Reading", "tokens per second, scoring given text", ("tokens_per_second",), "{:,.0f}".format),
    ("Cost", "Writing", "tokens per second", ("writing_tokens_per_second",), "{:,.1f}".format),
)


def measures(files: RunFiles) -> list[MeasureRow]:
    """The table of scores. A measure that no model has is left out."""
    names = [name for name in MODELS if files.get(name)]
    out = []
    for group, title, meaning, keys, show in MEASURES:
        values = [_measured(files, name, keys) for name in names]
        if any(value is not None for value in values):
            cells = tuple(MISSING if value is None else show(value) for value in values)
            out.append(MeasureRow(title, meaning, cells, group))
    return out


def _measured(files: RunFiles, name: str, keys: tuple[str, ...]) -> float | None:
    """From the summary, or from the evaluation's details."""
    found = number(files.get(name, *keys))
    return found if found is not None else number(files.detail("models", name, *keys))


# ---- pictures --------------------------------------------------------------------------------------------------------


def training_figures(files: RunFiles) -> list[Figure]:
    """Loss, KL and cross-entropy over the steps, as far as they were measured."""
    keys = (("divergence", "kind"), ("temperature",), ("extra_terms",), ("also",))  # also: in runs of version 0.1
    kind, temperature, *extra = (dig(files.recipe, "objective", *key) for key in keys)
    is_kl = kind in (None, "forward_kl") and not any(extra)
    plain = is_kl and temperature in (None, 1.0)
    held_out = {role: value for role in ROLES if (value := number(files.get(role, "kl"))) is not None}
    made = [
        ("Training loss", "loss", {}, "Each model's own objective, so the two are not comparable."),
        (
            "KL while training" if is_kl else "Divergence while training",
            "kl",
            held_out if plain else {},
            "Training rows, nats per token; dashed: held-out rows. The twin never sees the teacher."
            if plain and held_out
            else "Training rows, nats per token."
            if is_kl
            else "Training rows: the objective's own divergences, without T^2.",
        ),
        ("Cross-entropy while training", "ce", {}, "Training rows, nats per token of the true text."),
    ]
    out = []
    for title, key, marks, caption in made:
        known = {role for role, curve in files.curves.items() if curve.points(key)[0]}
        if key == "ce" and len(known) < 2:
            continue
        chart = charts.training(files.curves, key, title, marks)
        if chart is not None:
            out.append(Figure(title, chart, caption, tuple(role for role in ROLES if role in known | set(marks))))
    return out


def evaluation_figures(files: RunFiles) -> list[Figure]:
    """KL by position, reliability, agreement by topic: on held-out rows."""
    bins = files.detail("by_position", "kl")
    edges = _numbers(files.detail("by_position", "edges"))
    places = {role: _numbers(dig(bins, role)) for role in ROLES}
    reliable = {name: bins for name in MODELS if isinstance(bins := files.detail("reliability", name), dict)}
    place = charts.by_position(edges, places, "KL")
    by_topic = files.detail("topics")
    by_topic = [row for row in by_topic if isinstance(row, dict)] if isinstance(by_topic, list) else []
    extra = f" The largest {charts.MOST_TOPICS} of {len(by_topic)} topics." * (len(by_topic) > charts.MOST_TOPICS)
    made = (
        ("KL by place in the text", place, "Held-out rows, nats per token.", _those(places, ROLES)),
        (
            "Calibration",
            charts.reliability(reliable),
            "Held-out rows: how often a first choice is right, by how sure the model is. Dotted: perfect calibration.",
            _those(reliable, MODELS),
        ),
        (
            "Agreement by topic",
            charts.topics(by_topic),
            f"Held-out rows; 95% intervals from {charts.TOPIC_ROWS} rows on.{extra}",
            _those(places, ROLES),
        ),
    )
    return [Figure(title, chart, caption, models) for title, chart, caption, models in made if chart is not None]


def _numbers(values: Any) -> list[float]:
    found = [number(value) for value in values] if isinstance(values, list) else []
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def _those(found: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if found.get(name))


def bars(files: RunFiles) -> list[BarChart]:
    """Size, speed and quality of all models side by side."""
    made = (
        ("Size", "weights on disk", ("bytes",), size),
        ("Reading speed", "tokens per second", ("tokens_per_second",), "{:,.0f}".format),
        ("Perplexity", "of the true text, lower is better", ("perplexity",), perplexity),
        ("Agreement", "with the teacher's first choice", ("agreement",), percent),
    )
    out = []
    for title, note, keys, show in made:
        values = {name: value for name in MODELS if (value := _measured(files, name, keys)) is not None}
        top = max(values.values(), default=0.0)
        if len(values) > 1 and top > 0:
            rows = tuple((name, round(100 * value / top, 2), show(value)) for name, value in values.items())
            out.append(BarChart(title, note, rows))
    return out


# ---- facts -----------------------------------------------------------------------------------------------------------


def stages(files: RunFiles) -> list[dict[str, Any]]:
    """What each stage took, beside its estimate."""
    found = files.get("stages")
    out = []
    for name, entry in found.items() if isinstance(found, dict) else ():
        cells = []
        for key, show, least in (("seconds", duration, 2.0), ("peak_bytes", size, 2**20), ("disk_bytes", size, 2**20)):
            took, guess = (number(dig(entry, side, key)) for side in ("took", "estimated"))
            # A share of next to nothing says nothing.
            off = f"{signed(100 * (took / guess - 1), 0)}%" if took and guess and max(took, guess) >= least else ""
            cells.append((MISSING if took is None else show(took), "" if guess is None else show(guess), off))
        out.append({"name": shortened(str(name), 20), "cells": cells})
    return out


COUNTS = {
    "read": ("rows read", True),
    "train": ("training rows", True),
    "heldout": ("held-out rows", True),
    "tokens": ("tokens", True),
    "supervised": ("supervised tokens", True),
    "replies": ("replies", False),
    "ended": ("replies that end in a token which stops generation", False),
    "truncated": ("rows cut to fit", False),
    "duplicates": ("duplicates dropped", False),
    "bad": ("malformed rows left out", False),
    "empty": ("empty rows left out", False),
    "long_skipped": ("long rows left out", False),
    "unsupervised": ("rows with nothing to learn left out", False),
}
"""Counts of the data stage in words, and whether a zero is worth saying."""


def data_facts(files: RunFiles) -> list[tuple[str, str]]:
    """Counts of the data stage, and where the rows came from."""
    source = dig(files.recipe, "data", "source")
    kind, path = (dig(source, key) for key in ("kind", "path"))
    named = {"stdlib": "the interpreter's standard library"}.get(str(kind), str(path or kind or ""))
    out = [("source", shortened(named, 120))] if named else []
    for key, (words, always) in COUNTS.items():
        value = number(files.get("data", key))
        if value is not None and (value or always):
            out.append((words, f"{value:,.0f}"))
    topics = files.get("data", "topics")
    return [*out, ("topics", f"{len(topics):,}")] if isinstance(topics, dict) and len(topics) > 1 else out


def _facts(found: Any) -> list[tuple[str, str]]:
    out = []
    for key, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, dict):
            out += [(shortened(str(name), 40), _fact(part)) for name, part in value.items()]
        elif value is not None and value != []:
            out.append((shortened(str(key).replace("_", " "), 40), _fact(value)))
    return out


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return visible(", ".join(map(str, value)) if isinstance(value, list) else str(value), 200)


def warnings(files: RunFiles) -> list[str]:
    """What a reader should know before believing the rest."""
    found = next((known for known in (files.get("warnings"), files.detail("warnings")) if isinstance(known, list)), [])
    out = [str(text) for text in found]
    for part in ("teacher", "student"):
        if dig(files.recipe, part, "trust_remote_code") is True:
            out.append(f"Code that the {part}'s authors ship was run ({part}.trust_remote_code is true).")
    notes = files.get("data", "notes")
    return out + [str(note) for note in (notes if isinstance(notes, list) else [])] + files.gaps
