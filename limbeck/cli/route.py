"""`limbeck route`: the commands on a router."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import Json, RegistryFolder
from limbeck.cli.terminal import print_error, print_result

app = typer.Typer(help="Decide which expert answers a prompt, or the teacher.", no_args_is_help=True)

ShareOption = Annotated[
    float | None, typer.Option(min=0.0, help="at least this share of the teacher's quality, at least cost")
]


def _costs(pairs: list[str]) -> dict[str, float]:
    """NAME=NUMBER pairs. Raises typer.BadParameter."""
    costs = {}
    for text in pairs:
        name, _, value = text.partition("=")
        try:
            costs[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"--cost {text!r} is not NAME=NUMBER, such as code=0.15")
    return costs


@app.command("fit")
def fit(
    registry: RegistryFolder,
    quality: ShareOption = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0.0, help="most quality, at no more than this share of the teacher's cost")
    ] = None,
    cost: Annotated[
        list[str], typer.Option(metavar="NAME=NUMBER", help="cost of a prompt at an expert or the teacher, in any unit")
    ] = [],  # noqa: B006
    generalist: Annotated[
        list[str], typer.Option(metavar="NAME", help="an expert that is only compared with; may be repeated")
    ] = [],  # noqa: B006
    keep: Annotated[float, typer.Option(help="share of held-out prompts in scope that is not refused")] = 0.95,
    out_of_scope: Annotated[
        Path | None, typer.Option(help="prompts of nobody's kind: text, or JSONL with prompt; they only judge")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="folder of a text encoder, instead of hashed n-grams (slower)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn from the experts' own prompts which expert answers what; report what that is worth.

    Example: limbeck route fit registry --quality 0.95 --cost teacher=1 --cost code=0.15 --cost medical=0.15

    Without --quality and --max-cost, the target is 0.95 of the teacher's quality.
    """
    if quality is not None and max_cost is not None:
        raise typer.BadParameter("--quality and --max-cost are two targets; give one")
    costs = _costs(cost)
    from limbeck.router.from_registry import RouteChoice, fit_router
    from limbeck.router.frontier import RouteTarget

    target = (
        RouteTarget("cost", max_cost)
        if max_cost is not None
        else RouteTarget("quality", 0.95 if quality is None else quality)
    )
    choice = RouteChoice(target, costs, tuple(generalist), keep, out_of_scope, encoder)
    report = fit_router(registry, choice, on_message=print_error)
    if as_json:
        print_result(report, as_json=True)
        return
    from limbeck.cli.expert_tables import fitted

    print_result(fitted(report))
    print_result(f"\nreport: {registry / 'router' / 'report.html'}")


@app.command("ask")
def ask(
    registry: RegistryFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="what would be asked", show_default=False)],
    as_json: Json = False,
) -> None:
    """Where a prompt would go, and why.

    Example: limbeck route ask registry "How is a list sorted in Python?"
    """
    from limbeck.router.from_registry import ask_router

    decision = ask_router(registry, prompt)
    if as_json:
        print_result(asdict(decision), as_json=True)
        return
    print_result(f"{decision.expert or 'teacher'}: {decision.reason}")
