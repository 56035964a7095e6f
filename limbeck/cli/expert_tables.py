"""What `limbeck experts` and `limbeck route` show. Text of a card is never trusted: `visible` stands before all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from limbeck.cli.tables import columns
from limbeck.experts.readme import MEANING, WHO, score_text
from limbeck.system.units import count, size
from limbeck.text.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from limbeck.experts.verify import Verification

SHOWN = 5
LONGEST = 160


def listed(found: dict[str, Any]) -> RenderableType:
    """A line for every version, then what is damaged."""
    figures = ("size", "tokens/s", "measure", "expert", "teacher", "twin")
    table = columns("expert", "version", "domain", "format", right=figures)
    for line in found["experts"]:
        measure = line["quality"]
        cells = [
            score_text(measure, line["scores"].get(who, {}).get(measure)) for who in ("student", "teacher", "twin")
        ]
        table.add_row(
            line["name"],
            line["version"],
            Text(visible(line["domain"])),
            Text(visible(f"{line['format']} {line['quant']}".strip())),
            size(line["bytes"]),
            f"{line['tokens_per_second']:.0f}",
            Text(visible(measure)),
            *(cell.partition(" (")[0] or "-" for cell in cells),
        )
    parts: list[RenderableType] = [table if found["experts"] else Text("No experts yet: limbeck experts add.")]
    for reason in found["damaged"].values():
        parts += [Text(), Text(visible(reason), style="red")]
    return Group(*parts)


def shown(card: dict[str, Any]) -> RenderableType:
    """A card: scope, scores with intervals, cost, lineage."""
    scope = card["scope"]
    lines = {
        "domain": scope["domain"],
        "description": scope["description"],
        "languages": ", ".join(scope["languages"]),
        "input": ("conversations" if scope["chat"] else "plain text")
        + (f", at most {scope['max_input_tokens']:,} tokens" if scope["max_input_tokens"] else ""),
        **{f"transfer set, {key}": _short(str(value)) for key, value in scope["transfer_set"].items()},
        "prompts": ", ".join(f"{value:,} {key}" for key, value in card["prompts"].items()) or "not stored",
        "model": f"{card['format']} {card['quant']}, {count(card['parameters'])} parameters, {size(card['bytes'])}",
        "in memory": size(card["memory_bytes"]),
        "writing": f"{card['tokens_per_second']:.0f} tokens/s ({card['machine']})",
        "teacher": card["teacher"],
        "licence": card["licence"] or "not stated",
        "recipe": card["recipe_fingerprint"],
        "added on": card["created"],
        "folder": card["path"],
    }
    parts: list[RenderableType] = [Text(f"{card['name']} {card['version']}", style="bold"), Text()]
    parts += [Text(visible(f"{key}: {value}")) for key, value in lines.items() if value]
    parts += [Text(visible(f"{number}. {step}")) for number, step in enumerate(card["lineage"], 1)]
    parts += [Text(), _scores(card["scores"]), *(Text(visible(f"note: {note}")) for note in card["notes"])]
    for title, key in (("for prompts such as", "examples"), ("not for prompts such as", "counter_examples")):
        if scope[key]:
            parts += [Text(), Text(title, style="bold")]
            parts += [Text(f"- {visible(_short(prompt))}") for prompt in scope[key][:SHOWN]]
    return Group(*parts)


def _scores(scores: dict[str, Any]) -> Table:
    who = [name for name in WHO if name in scores]
    table = columns("held out", right=["expert" if name == "student" else name for name in who])
    for metric, meaning in MEANING.items():
        if any(metric in scores[name] for name in who):
            table.add_row(meaning, *(score_text(metric, scores[name].get(metric)) or "-" for name in who))
    return table


def verified(found: Sequence[Verification]) -> RenderableType:
    """What was found again, expert by expert."""
    parts: list[RenderableType] = []
    for one in found:
        verdict = Text(f"{one.name} {one.version}: ", style="bold")
        verdict.append(
            "as its card says" if one.holds else "NOT AS ITS CARD SAYS", "green" if one.holds else "bold red"
        )
        parts += [verdict, Text("- every file is as it was written")]
        if not one.fingerprint_same:
            parts.append(Text("- the model is another than the one that the card names", style="red"))
        equal = one.replayed - len(one.differing)
        parts.append(Text(f"- {equal} of {one.replayed} greedy answers are equal, token by token"))
        for score in one.scores:
            stated = f"the card says {score.stated:.4g} ({score.low:.4g} to {score.high:.4g})"
            line = f"- {score.metric} on {one.rows} held-out rows: {score.value:.4g}; {stated}"
            parts.append(Text(line, style="" if score.holds else "red"))
        if one.stated_only:
            names = visible(", ".join(one.stated_only))
            parts.append(Text(f"- not measured again (needs the teacher, a verifier or stored rows): {names}"))
    return Group(*parts)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"


# ---- a router --------------------------------------------------------------------------------------------------------


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
