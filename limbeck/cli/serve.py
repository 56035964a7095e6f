"""`limbeck serve` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import RegistryFolder, key_values
from limbeck.cli.terminal import print_error

SettingsOption = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="settings, such as port=8080", show_default=False, callback=key_values),
]
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="YAML file with settings")]


def serve(registry: RegistryFolder, settings: SettingsOption = None, file: SettingsFile = None) -> None:
    """Serve a registry's experts behind one OpenAI-compatible endpoint, until it is stopped.

    Example: limbeck serve experts port=8080 upstream.url=https://api.openai.com/v1 upstream.model=gpt-5
    """
    from limbeck.serve.settings import load_serving

    loaded = load_serving(file, settings or [])
    from limbeck.serve.run import run_serve

    run_serve(registry, loaded, on_message=print_error)
