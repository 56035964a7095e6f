"""The export stage: the student in every format that the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import Stopped, StoreError
from limbeck.export.verified import ParityRows, card_of, export_lm, open_source, told_of
from limbeck.models.artifact import is_artifact, read_card
from limbeck.recipe import bound_of, name_of_export
from limbeck.system.atomic import sweep
from limbeck.system.sealed import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Export
    from limbeck.types import Callbacks


def run_exports(
    exports: Sequence[Export], artifact: Path, judged: ParityRows, *, folder: Path, callbacks: Callbacks
) -> None:
    """Write every export of a run that is not in `folder` yet, and parity.json for all of them.

    An export is there when its folder is whole, was made of these weights, and meets its bound. Raises what
    `export_artifact` raises; Stopped, between two of them, when asked to stop.
    """
    sweep(folder, "parity.json")
    source, card = open_source(artifact), card_of(artifact)
    told = []
    for settings in exports:
        if callbacks.stop_asked():
            raise Stopped("stopped between two exports; run the same command again to go on.")
        out = folder / name_of_export(settings)
        if not _is_there(out, source, settings):
            callbacks.on_message(f"exporting to {settings.kind} {settings.quant}")
            export_lm(source, card, out, settings, judged, on_progress=callbacks.on_progress)
        told.append(told_of(out, read_card(out)))
    write_json(folder / "parity.json", {"exports": told})


def _is_there(out: Path, source: HfLM, settings: Export) -> bool:
    sweep(out.parent, out.name)  # a folder whose replacement was cut short is put back
    if not is_artifact(out):
        return False
    try:
        found = read_card(out).parity or {}
    except StoreError:
        return False
    return found.get("source") == source.fingerprint and found.get("kl", 1e9) <= bound_of(settings)
