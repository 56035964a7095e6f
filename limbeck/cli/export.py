"""`limbeck export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import Json
from limbeck.cli.terminal import print_result, watched
from limbeck.recipe import EXPORTS, make_export, quants_of

QUANTS = "; ".join(f"{kind}: {', '.join(quants_of(kind))}" for kind in EXPORTS)


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|RUN", help="artifact, folder of a run, or any model that opens", show_default=False
        ),
    ],
    to: Annotated[str, typer.Option(help=f"format: {', '.join(EXPORTS)}", show_default=False)],
    quant: Annotated[str | None, typer.Option(help=f"type of weights. {QUANTS}", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder to write (default: in the run, or beside the model)", show_default=False),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="largest mean KL to the source, nats per token; needed below 8 bits", show_default=False),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="text, JSONL, Parquet or CSV to judge it on (default: the run's held-out rows, or built in)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model in another format, reopen it, and keep it only if it still is that model.

    Example: limbeck export runs/my --to gguf --quant q8_0
    """
    settings = make_export(to, quant, max_kl)
    with watched() as (on_progress, on_message):
        from limbeck.export.command import ExportChoice, run_export

        told = run_export(ExportChoice(source, out, rows), settings, on_progress=on_progress, on_message=on_message)
    if as_json:
        print_result(told, as_json=True)
        return
    from limbeck.cli.tables import parity_table

    print_result(parity_table([told]))
    print_result(f"\nexport: {told['path']}")
