"""What `limbeck route` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from limbeck.text.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping


def fitted(report: Mapping[str, Any]) -> Table:
    """The figures of a report that one looks at first."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    kinds, scope, routing = report["kinds"], report["scope"], report["routing"]
    table.add_row("experts", visible(", ".join(report["experts"])))
    table.add_row("told right, of prompts in scope", _share(kinds["accuracy"]))
    table.add_row("in scope and not refused", _share(scope["kept"]))
    table.add_row("AUROC, prompts of experts left out", _number(scope["left_out"]["auroc"]))
    if scope["given"]:
        table.add_row("AUROC, prompts out of scope", _number(scope["given"]["auroc"]))
    table.add_row("calibration error", f"{kinds['ece']:.3f}")
    if not routing:
        table.add_row("quality and cost", "not known: there are no judged held-out prompts")
        return table
    target = routing["target"]
    table.add_row(f"target: {target['kind']}, of the teacher's", f"{target['value']:.1%}{_reached(target)}")
    table.add_row("quality, of the teacher's", _share(routing["quality"]))
    table.add_row("cost, of the teacher's", _share(routing["cost"]))
    table.add_row("to the teacher", _share(routing["share"]))
    table.add_row("APGR (0.5 is chance)", _number(routing["apgr"]))
    return table


def _reached(target: Mapping[str, Any]) -> str:
    if target["reached"]:
        return "" if target["met_on_test"] else " (met on calibration prompts, not on test prompts)"
    return f" cannot be reached; the nearest on calibration prompts is {target['best']:.1%}"


def _share(value: Any) -> str:
    return "not measured" if value is None or value[0] is None else "{:.1%} ({:.1%} to {:.1%})".format(*value)


def _number(value: Any) -> str:
    return "not measured" if value is None or value[0] is None else "{:.3f} ({:.3f} to {:.3f})".format(*value)
