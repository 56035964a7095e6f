"""Arguments and options of the command line that several commands share, or that would make a command unreadable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.system.units import num_bytes

EXAMPLES = """\
[bold]Examples[/bold]

  limbeck init --data chats.jsonl --layers 20 --out my.yaml

  limbeck check my.yaml

  limbeck run my.yaml train.budget.steps=200

  limbeck show traces runs/my --row 3

  limbeck capture --upstream https://api.openai.com --store traffic

  limbeck export runs/my --to gguf --quant q8_0

  limbeck experts add runs/my registry --name my

  limbeck serve registry

  limbeck selftest --teacher smollm2-135m --student runs/my/train/student/artifact

Every KEY=VALUE sets that key of the recipe. Running a command again resumes it and skips what is done.

Exit codes: 0 done, 1 a statement of selftest failed, 2 usage, 3 recipe, 4 model, 5 memory or disk, 6 data, \
7 store, 8 run folder, 9 not finite, 10 missing package, 11 sandbox, 12 export, \
13 engine, 14 expert, 75 stopped (run it again)."""


def key_values(overrides: list[str] | None) -> list[str]:
    for text in overrides or []:
        if "=" not in text:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE, such as train.optimizer.lr=1e-4")
    return overrides or []


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe, a YAML file", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="folder of a run, such as runs/NAME", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="keys of the recipe to set", show_default=False, callback=key_values),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="folder of the run (default: runs/NAME)")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]

RecipeOrRun = Annotated[
    Path, typer.Argument(metavar="RECIPE|RUN", help="recipe, or folder of a run", show_default=False)
]
ReviewFile = Annotated[Path, typer.Option(help="file to write: .csv for verdicts of your own, .html to read")]
ReviewMost = Annotated[
    int | None, typer.Option(min=1, help="most replies written (default: all as CSV, 1000 as HTML)", show_default=False)
]
TestRows = Annotated[
    Path | None, typer.Option(help="text, JSONL, Parquet or CSV: its first rows instead of the built-in ones")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="run code that the models' authors ship")]

# ---- limbeck capture -------------------------------------------------------------------------------------------------


def _size(text: str | int) -> int:
    try:
        return num_bytes(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def tag_pairs(tags: list[str]) -> dict[str, str]:
    """NAME=VALUE pairs. Raises typer.BadParameter."""
    for text in tags:
        if not text.partition("=")[0] or "=" not in text:
            raise typer.BadParameter(f"--tag {text!r} is not NAME=VALUE, such as app=helpdesk")
    return {name: value for name, _, value in (text.partition("=") for text in tags)}


UpstreamOption = Annotated[
    str, typer.Option(help="where requests go: https://HOST, http://HOST:PORT, with or without /v1", show_default=False)
]
Store = Annotated[Path, typer.Option(help="folder that exchanges are written to", show_default=False)]
Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="listen on an address that other machines reach")]
SampleOption = Annotated[float, typer.Option(help="share of conversations that is recorded")]
Redact = Annotated[
    list[str],
    typer.Option(help="what is taken out: all, none, email, phone, card, iban, ipv4, or NAME=REGEX. Keys always are"),
]
Tag = Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="tag of every exchange", show_default=False)]
MaxBytes = Annotated[
    int | None, typer.Option(parser=_size, metavar="SIZE", help="stop recording, not the traffic, at this size")
]
RegistryFolder = Annotated[Path, typer.Argument(metavar="REGISTRY", help="folder of experts", show_default=False)]
