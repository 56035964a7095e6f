"""What the command line shows, as rich renderables and plain sentences. Nothing is printed here.

Text that a model or a file wrote is never trusted: control characters are made visible, and it never passes through
rich's markup.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from limbeck.system.sealed import REMADE
from limbeck.system.units import count, duration, size
from limbeck.text.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from limbeck.check.findings import CheckResult
    from limbeck.label.request_cost import RequestCost
    from limbeck.pipeline.show import RunView, TokenView, TraceView
    from limbeck.selftest.run import CheckOutcome, SelfTest

WHO = ("teacher", "student", "twin")


def columns(*left: str, right: Sequence[str] = ()) -> Table:
    """An empty table whose last columns, of figures, stand at the right and are not broken."""
    table = Table(*left, box=None, pad_edge=False, header_style="bold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table


# ---- a finished run --------------------------------------------------------------------------------------------------

COLUMNS = {
    "kl": ("KL", "{:.3f}".format),
    "agreement": ("agreement", "{:.1%}".format),
    "perplexity": ("perplexity", "{:.2f}".format),
    "ece": ("ECE", "{:.3f}".format),
    "parameters": ("parameters", count),
    "bytes": ("size", size),
    "tokens_per_second": ("tokens/s", "{:.0f}".format),
}


def verdict_table(summary: dict[str, Any]) -> Table:
    """Teacher, student and twin side by side."""
    table = columns("held out", right=[title for title, _ in COLUMNS.values()])
    for who in WHO:
        scores = summary.get(who)
        if scores:
            cells = [_cell(scores.get(key), show) for key, (_, show) in COLUMNS.items()]
            table.add_row(who, *cells, style="bold" if who == "student" else None)
    return table


def _cell(value: float | None, show: Any) -> str:
    return "-" if value is None else show(value)


def parity_table(exports: list[dict[str, Any]]) -> Table:
    """Exports, each against the model that it was made from."""
    measured = ("KL to source", "bound", "agreement", "greedy equal")
    table = columns("export", right=(*measured, "size", "of source", "writing tok/s", "source"))
    for told in exports:
        kl, bound, size_now = f"{told['kl']:.2g}", f"{told['kl_bound']:g}", size(told["bytes"])
        shares = (f"{told['agreement']:.2%}", f"{told['greedy_equal']:.0%}")
        rates = (f"{told['tokens_per_second']:.1f}", f"{told['source_tokens_per_second']:.1f}")
        share = f"{told['bytes'] / told['source_bytes']:.0%}"
        table.add_row(Text(visible(str(told["name"]))), kl, bound, *shares, size_now, share, *rates)
    return table


def cost_table(stages: dict[str, dict[str, Any]]) -> Table:
    """Estimated and measured time, memory and disk of every stage."""
    table = Table("stage", box=None, pad_edge=False, header_style="bold")
    for title in ("time est.", "took", "memory est.", "took", "disk est.", "took"):
        table.add_column(title, justify="right")
    for stage, entry in stages.items():
        cells = []
        for key, show in (("seconds", duration), ("peak_bytes", size), ("disk_bytes", size)):
            for side in ("estimated", "took"):
                cells.append(_cell((entry.get(side) or {}).get(key), show))
        table.add_row(stage, *cells)
    return table


def result(summary: dict[str, Any]) -> Group:
    """The verdict table, its sentence, and what every stage cost."""
    parts: list[RenderableType] = []
    if any(summary.get(who) for who in WHO):
        parts += [verdict_table(summary), Text()]
    sentence = summary.get("verdict", {}).get("sentence")
    if sentence:
        parts += [Text(visible(sentence), style="bold"), Text()]
    if summary.get("exports"):
        parts += [parity_table(summary["exports"]), Text()]
    if summary.get("stages"):
        parts += [cost_table(summary["stages"])]
    return Group(*parts)


# ---- check -----------------------------------------------------------------------------------------------------------


def check_facts(result: CheckResult) -> Group:
    """What was found, and what each stage is expected to cost."""
    parts: list[RenderableType] = [Text(f"- {visible(fact)}") for fact in result.facts]
    if result.estimate:
        table = Table("stage", box=None, pad_edge=False, header_style="bold")
        for title in ("time", "peak memory", "disk"):
            table.add_column(title, justify="right")
        for stage, cost in result.estimate.items():
            table.add_row(stage, duration(cost["seconds"]), size(cost["peak_bytes"]), size(cost["disk_bytes"]))
        total = sum(cost["seconds"] for cost in result.estimate.values())
        peak = max(cost["peak_bytes"] for cost in result.estimate.values())
        disk = sum(cost["disk_bytes"] for cost in result.estimate.values())
        table.add_row("together", duration(total), size(peak), size(disk), style="bold")
        parts += [Text(), table]
    if result.requests is not None:
        parts += [Text(), requests_table(result.requests), Text(visible(_limits(result.requests)))]
    return Group(*parts)


def requests_table(cost: RequestCost) -> Table:
    """What the endpoint is asked, and what it charges."""
    table = columns("endpoint", right=("requests", "prompt tokens", "reply tokens", "cost"))
    likely = (cost.likely_prompt_tokens, cost.likely_reply_tokens, cost.cost_likely)
    most = (cost.most_prompt_tokens, cost.most_reply_tokens, cost.cost_most)
    for name, (prompt, reply, money) in (("likely", likely), ("at most", most)):
        paid = "unknown" if money is None else visible(f"{money:,.2f} {cost.currency}")
        table.add_row(name, f"{cost.requests:,}", f"{prompt:,}", f"{reply:,}", Text(paid))
    return table


def _limits(cost: RequestCost) -> str:
    """Why the cost is unknown or nothing, and what the limits per minute make of it."""
    known = ""
    if cost.cost_most is None:
        known = "The cost is unknown: teacher.prices is not set. "
    elif cost.cost_most == 0:
        known = "By teacher.prices nothing is charged. "
    time = "No limit per minute is set" if not cost.seconds_least else f"At least {duration(cost.seconds_least)}"
    return f"{known}{time} (teacher.requests_per_minute, teacher.tokens_per_minute)."


# ---- selftest --------------------------------------------------------------------------------------------------------

VERDICTS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("not run", "yellow")}


def statements(found: SelfTest) -> Group:
    """Every statement with what was measured, the bound, and whether it holds."""
    parts: list[RenderableType] = [Text(f"- {visible(fact)}") for fact in found.facts]
    table = Table("statement", "", "measured", box=None, pad_edge=False, header_style="bold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("bound", no_wrap=True)
    for finding in found.findings:
        _add_finding(table, finding)
    counts = [sum(finding.passed is verdict for finding in found.findings) for verdict in (True, False, None)]
    last = "{} statements hold, {} do not, {} could not run".format(*counts)
    return Group(*parts, Text(), table, Text(), Text(f"{last} ({duration(found.seconds)})", style="bold"))


def _add_finding(table: Table, finding: CheckOutcome) -> None:
    word, style = VERDICTS[finding.passed]
    lines = [
        (measure.what, _measured(measure.value), _bound(measure.low, measure.high), measure.passed)
        for measure in finding.measures
    ]
    lines += [(f"it raised {finding.raised}", "", "", False)] if finding.raised is not None else []
    lines += [(finding.skipped, "", "", None)] if finding.skipped is not None else []
    for number, (what, value, bound, passed) in enumerate(lines):
        first = number == 0
        name, verdict = (Text(finding.name), Text(word, style=style)) if first else (Text(), Text())
        table.add_row(name, verdict, Text(visible(what)), value, bound, style="red" if passed is False else None)


def _measured(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _bound(low: float, high: float) -> str:
    if math.isinf(low):
        return "" if math.isinf(high) else "0" if high == 0 else f"at most {high:g}"
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


# ---- show ------------------------------------------------------------------------------------------------------------


def trace(view: TraceView) -> Group:
    """The text with its supervised tokens coloured, then those tokens with the teacher's alternatives."""
    head = f"row {view.number} of {view.total}  id {view.id}  {view.split}"
    head += f"  topic {view.topic}" * bool(view.topic) + f"  from {view.source}" * bool(view.source)
    parts: list[RenderableType] = [Text(visible(head), style="bold"), Text(), _coloured(view.tokens), Text()]
    if not view.stored:
        return Group(*parts, Text("No distributions are stored in this run (trace.target.kind is full)."))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("position", justify="right")
    table.add_column("token")
    table.add_column("chance", justify="right")
    table.add_column("the teacher's most probable tokens", overflow="fold")
    table.add_column("rest", justify="right")
    for token in view.tokens:
        if token.supervised:
            table.add_row(
                str(token.position),
                _quoted(token.text),
                _percent(token.chance),
                _alternatives(token),
                _percent(token.rest),
            )
    return Group(*parts, table)


def _coloured(tokens: tuple[TokenView, ...]) -> Text:
    """Supervised tokens green where the teacher's first choice was this token, yellow where not; the others dim."""
    text = Text()
    for token in tokens:
        style = "dim"
        if token.supervised:
            agrees = not token.alternatives or token.alternatives[0][0] == token.text
            style = "green" if agrees else "yellow"
        text.append(visible(token.text, keep="\n"), style=style)
    return text


def _quoted(text: str) -> Text:
    return Text(f"'{visible(text)}'")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _alternatives(token: TokenView) -> Text:
    text = Text()
    for number, (word, mass) in enumerate(token.alternatives):
        text.append("  " if number else "")
        text.append(f"'{visible(word)}'", style="bold green" if word == token.text else "")
        text.append(f" {mass:.1%}")
    return text


def run(view: RunView) -> Group:
    """Stages with fingerprints and costs, folders with sizes, the newest metrics, and the scores."""
    student = ", ".join(f"{key} {value}" for key, value in view.student.items())
    head = Text(visible(f"{view.name}: {view.teacher} into {student}  ({view.path})"), style="bold")
    stages = Table("stage", "fingerprint", box=None, pad_edge=False, header_style="bold")
    for title in ("time", "peak memory", "disk"):
        stages.add_column(title, justify="right")
    for record in view.stages:
        costs = (duration(record.seconds), size(record.peak_bytes), size(record.disk_bytes))
        stages.add_row(record.name, record.fingerprint, *costs)
    parts: list[RenderableType] = [head, Text(), stages if view.stages else Text("No stage has finished yet."), Text()]
    parts.append(Text("folders: " + ", ".join(f"{visible(name)} {size(of)}" for name, of in view.bytes.items())))
    for who, line in view.training.items():
        parts.append(Text(f"{who}: {metrics(line)}"))
    if view.damaged:
        parts.append(Text(f"damaged, and left out here: {', '.join(view.damaged)}. {REMADE}", style="red"))
    if view.summary:
        parts += [Text(), result(view.summary | {"stages": {}})]
    return Group(*parts)


def metrics(line: dict[str, Any]) -> str:
    """One line of metrics.jsonl, short."""
    keys = ("step", "tokens", "loss", "kl", "ce")
    return "  ".join(f"{key} {_number(line[key])}" for key in keys if line.get(key) is not None)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
