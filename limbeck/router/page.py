"""What a router is worth, as a page and as a chart: quality against cost. Everything in it is a number of ours or
escaped text of others."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from limbeck.report.charts import COLOURS, drawing, reliability, svg
from limbeck.report.format import number, percent, signed
from limbeck.text.visible import shortened, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

WIDE, HIGH = 720.0, 400.0
TEACHER, ROUTER = "teacher", "router"
MISSING = "\u2013"


def chart(routing: Mapping[str, Any]) -> Markup:
    """Mean quality against mean cost: the router's curve and where it stands, the oracle, chance, each model alone, and
    the cascade as far as it is not dearer than the teacher."""
    with drawing(WIDE, HIGH) as figure:
        axes = figure.add_subplot()
        _line(axes, routing["random"], "twin", "random", dashes=(3, 3))
        _line(axes, routing["oracle"], "muted", "oracle", dashes=(1, 2))
        dearest = routing["points"][TEACHER][0]
        if cascade := [point for point in routing.get("cascade") or () if point[0] <= dearest]:
            _line(axes, cascade, "teacher", "cascade", dashes=(6, 2), below=True)
        _line(axes, routing["curve"], "student", "router", below=True)
        for name, (cost, quality, *_) in routing["points"].items():
            own = name == ROUTER
            colour = COLOURS["student" if own else "teacher" if name == TEACHER else "ink"]
            axes.plot([cost], [quality], "D" if own else "o", color=colour, markersize=9 if own else 6)
            if not own:
                text = shortened(name, 24)
                axes.annotate(text, (cost, quality), (6, -4), textcoords="offset points", va="top", fontsize=10.5)
        axes.set_xlabel("cost of a prompt, the teacher's is 1")
        axes.set_ylabel("quality")
        axes.margins(x=0.08, y=0.1)
        return svg(figure, "Quality against cost")


def _line(
    axes: Axes,
    points: Sequence[Sequence[float]],
    colour: str,
    label: str,
    *,
    dashes: Any = (None, None),
    below: bool = False,
) -> None:
    """A line with its name above it to the left, or `below` it, to the right and further on: two may be close."""
    costs, qualities = [point[0] for point in points], [point[1] for point in points]
    axes.plot(costs, qualities, color=COLOURS[colour], dashes=dashes)
    middle = len(points) * (3 if below else 2) // 4
    at = ((costs[0] + costs[-1]) / 2, (qualities[0] + qualities[-1]) / 2) if len(points) == 2 else None
    place, shift = at or (costs[middle], qualities[middle]), (6, -4) if below else (0, 6)
    name = axes.annotate(label, place, shift, textcoords="offset points", color=COLOURS[colour], fontsize=10.5)
    name.set_horizontalalignment("left" if below else "right")
    name.set_verticalalignment("top" if below else "baseline")


def standalone(drawn: Markup) -> str:
    """The chart as a file of its own, in the page's light and dark colours."""
    css = f"<style>{_asset('report', 'colours.css')}svg {{ font-family: sans-serif; }}</style>"  # here :root is the svg
    head, rest = str(drawn).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{css}{rest}\n'


def page(report: Mapping[str, Any]) -> str:
    """report.html: the same report gives the same page."""
    routing = report["routing"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names = [shortened(name, 64) for name in report["experts"]]
    html = environment.from_string(_asset("router", "page.html.j2")).render(
        style=Markup(_asset("report", "colours.css") + _asset("report", "page.css")),
        experts=names,
        verdict=_verdict(report),
        tiles=_tiles(report),
        frontier=chart(routing) if routing else None,
        reliability=reliability({"student": report["kinds"]["bins"]}),
        ece=f"{report['kinds']['ece']:.3f}",
        confusion=list(zip(names, report["kinds"]["confusion"], strict=True)),
        models=_models(routing) if routing else [],
        compared=_compared(routing) if routing else [],
        facts=_facts(report),
        notes=[visible(str(note), 500) for note in report["notes"]] + (_doubts(routing) if routing else [NOT_JUDGED]),
    )
    return html.encode("utf-8", "replace").decode()


NOT_JUDGED = (
    "No held-out prompts with a quality of expert and teacher: the kind of a prompt alone decides, and nothing is "
    "known of cost and quality."
)


def _asset(room: str, name: str) -> str:
    return (resources.files(f"limbeck.{room}") / name).read_text(encoding="utf-8")


def interval(value: Any, show: Any = percent) -> str:
    """ "71.2% (68.0% to 74.1%)", or a dash where it was not measured."""
    numbers = [number(part) for part in value] if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or numbers[0] is None:
        return MISSING
    if None in numbers:
        return show(numbers[0])
    return f"{show(numbers[0])} ({show(numbers[1])} to {show(numbers[2])})"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    routing = report["routing"]
    if not routing:
        return {"state": "open", "claim": "Prompts are routed by their kind; what that is worth was not measured."}
    target, (quality, _, _), (cost, _, _) = routing["target"], routing["quality"], routing["cost"]
    reached = f"{percent(quality)} of the teacher's quality at {percent(cost)} of its cost"
    on = f"on {routing['rows']:,} test prompts"
    if not target["reached"]:
        asked = "quality" if target["kind"] == "quality" else "cost"
        claim = f"No routing of these experts reaches {percent(target['value'])} of the teacher's {asked}"
        return {"state": "bad", "claim": f"{claim}; the nearest is used: {reached}, {on}."}
    state = "good" if target["met_on_test"] else "bad"
    return {"state": state, "claim": f"Routing gives {reached}, {on}."}


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, its interval)."""
    routing, scope = report["routing"], report["scope"]
    found: list[tuple[Any, str, Callable[..., str]]] = []
    found.append((report["kinds"]["accuracy"], "of prompts in scope are told right", percent))
    judged = scope["given"] or scope["left_out"]
    what = "AUROC, out-of-scope prompts" if scope["given"] else "AUROC, prompts of experts left out"
    found.append((judged["auroc"], what, _three))
    if routing:
        found.append((routing["share"], "of prompts go to the teacher", percent))
        found.append((routing["apgr"], "APGR; 0.5 is chance", _three))
    tiles = []
    for value, label, show in found:
        if isinstance(value, list | tuple) and number(value[0]) is not None:
            tiles.append((show(value[0]), label, f"{show(value[1])} to {show(value[2])}"))
    return tiles


def _models(routing: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = sorted(routing["points"].items(), key=lambda entry: entry[1][0])
    return [
        (shortened(name, 64), f"{cost:.3f}", f"{quality:.3f}", percent(share))
        for name, (cost, quality, share, _) in rows
    ]


def _compared(routing: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, found in routing["compared"].items():
        gap = found["difference"]
        low, high = signed(gap[1], 3), signed(gap[2], 3)
        lines.append(
            f"At no more than the cost of {shortened(name, 64)} ({found['cost']:.3f}), the router reaches "
            f"{found['router_quality'][0]:.3f} against {found['quality'][0]:.3f} "
            f"(difference {signed(gap[0], 3)}, 95% interval {low} to {high})."
            + ("" if found["reached"] else " Its own least cost is higher; it stands at that.")
        )
    return lines


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    scope, routing = report["scope"], report["routing"]
    facts = [
        ("Experts", ", ".join(f"{shortened(n, 40)} {v}" for n, v in (report["fitted_on"] or {}).items()) or MISSING),
        ("In scope and not refused", interval(scope["kept"])),
        ("AUROC, prompts of experts left out of a fit", interval(scope["left_out"]["auroc"], _three)),
    ]
    if scope["given"]:
        facts.append(
            (
                f"AUROC, {scope['given']['outside']:,} prompts of nobody's kind",
                interval(scope["given"]["auroc"], _three),
            )
        )
        facts.append(("of these refused", interval(scope["given"]["refused"])))
    if routing:
        facts += [
            ("Quality, of the teacher's", interval(routing["quality"])),
            ("Cost, of the teacher's", interval(routing["cost"])),
            ("APGR against the experts routed to", interval(routing["apgr"], _three)),
            ("APGR against a random expert", interval(routing["apgr_random"], _three)),
        ]
        facts += [
            (f"Share to the teacher for {recovered} of the gap", MISSING if share is None else percent(share))
            for recovered, share in routing["share_needed"].items()
        ]
    return facts


def _doubts(routing: Mapping[str, Any]) -> list[str]:
    doubts = []
    if routing["judged_elsewhere"] < 1:
        doubts.append(
            "Experts were not judged on all prompts of other experts' kinds; where one would answer such a prompt, the "
            f"lowest quality that any expert was seen with counts ({routing['worst']:.2f}). router/cross.jsonl changes "
            "that."
        )
    if routing["apgr"] is None:
        doubts.append("The teacher is not better than the experts routed to: there is no gap, and no APGR.")
    if not routing["target"]["met_on_test"] and routing["target"]["reached"]:
        doubts.append("The target was met on calibration prompts, with a margin, but not on the test prompts.")
    return doubts
