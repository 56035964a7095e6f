"""Exports: a model in another format, reopened and judged before it is kept."""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ExportError, RunDirError, TeacherError
from limbeck.evaluate.parity import Parity, Sizes, parity
from limbeck.evaluate.speed import stored_bytes
from limbeck.export.gguf_tokens import caveat
from limbeck.models.artifact import artifact_of, is_artifact, read_card, write_card
from limbeck.models.card import Card, hub_id, licence_of
from limbeck.models.gguf_import import model_licence
from limbeck.models.int8 import num_quantized
from limbeck.models.open import open_format, open_hf
from limbeck.models.weights import weight_bytes
from limbeck.recipe import bound_of
from limbeck.system.atomic import atomic_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.models.artifact import Artifact
    from limbeck.models.hf import HfLM
    from limbeck.recipe import Export
    from limbeck.types import OnProgress, Row, Trace

logger = logging.getLogger(__name__)

WRITERS = {
    "safetensors": ("limbeck.export.safetensors", "write_safetensors"),
    "gguf": ("limbeck.export.gguf", "write_gguf"),
    "onnx": ("limbeck.export.onnx", "write_onnx"),
}
"""What writes a format's files into a folder: imported when it is asked for."""

EXACT = "float32"
"""What a source runs in, and a safetensors export: the stored numbers are judged, not this machine's rounding."""


@dataclass(frozen=True)
class ParityRows:
    """What exports are judged on: rows, and what they are, in words."""

    rows: Sequence[Row | Trace]
    text: str


def _ignore(_what: object) -> None:
    """Nobody is listening."""


def export_artifact(
    source: str | Path,
    out: Path,
    settings: Export,
    judged: ParityRows,
    *,
    on_progress: OnProgress = _ignore,
    on_message: Callable[[str], None] = _ignore,
) -> Artifact:
    """Export an artifact, or any model that transformers opens, into the folder `out`: whole, or not at all.

    The export is reopened and compared with its source before it gets its name. Raises ExportError when it strays
    further than `settings` allow, RecipeError when they must say how far and do not, RunDirError when `out` holds
    anything but an export, TeacherError for a source or a family that cannot be exported, StoreError for a damaged one.
    """
    bound_of(settings)
    refuse_target(out, Path(source))
    card = card_of(source)
    on_message(f"opening {source}")
    return export_lm(open_source(source), card, out, settings, judged, on_progress=on_progress)


def open_source(source: str | Path) -> HfLM:
    """A model to export, in single precision. Raises TeacherError, for one that is quantized already as well."""
    lm = open_hf(source, dtype=EXACT)
    if num_quantized(lm.model):
        raise TeacherError(
            f"{source} is an int8 export; exporting it once more would lose twice. Give the artifact that it was "
            "exported from."
        )
    return lm


def export_lm(
    lm: HfLM, card: Card, out: Path, settings: Export, judged: ParityRows, *, on_progress: OnProgress = _ignore
) -> Artifact:
    """As `export_artifact`, for a model that is open. `card` is that of the source."""
    bound = bound_of(settings)
    named = f"{settings.kind} {settings.quant}"
    note = caveat(lm.tokenizer) if settings.kind == "gguf" else ""
    lineage = (*card.lineage, f"exported to {named}{note}")
    card = replace(card, format=settings.kind, quant=settings.quant, lineage=lineage, parity=None)
    with atomic_dir(out) as tmp:
        _writer(settings.kind)(tmp, lm, quant=settings.quant)
        lm.tokenizer.save_pretrained(tmp)
        if lm.model.generation_config is not None:
            lm.model.generation_config.to_json_file(tmp / "generation_config.json")
        write_card(tmp, card)
        begun = time.monotonic()
        measured = _judge(lm, tmp, settings, judged, on_progress)
        seconds = time.monotonic() - begun
        logger.info("%s: KL to its source %.3g (bound %g), judged in %.1f s", named, measured.kl, bound, seconds)
        if not measured.kl <= bound:
            raise ExportError(_too_far(settings, measured, bound))
        card = replace(card, parity={**asdict(measured), "kl_bound": bound, "source": lm.fingerprint})
        write_card(tmp, card)
        for file in tmp.rglob("*"):  # safetensors writes with mode 0600
            file.chmod(0o755 if file.is_dir() else 0o644)
    return artifact_of(out, card)


def _writer(kind: str) -> Callable[..., None]:
    module, name = WRITERS[kind]
    return getattr(importlib.import_module(module), name)


def _judge(lm: HfLM, folder: Path, settings: Export, judged: ParityRows, on_progress: OnProgress) -> Parity:
    own_code = type(lm.model).__module__.startswith("transformers_modules")  # it was allowed when the source was opened
    dtype = EXACT if settings.kind == "safetensors" else "auto"
    export = open_format(settings.kind, folder, dtype=dtype, trust_remote_code=own_code)
    sizes = Sizes(stored_bytes(lm), weight_bytes(folder))
    return parity(lm, export, judged.rows, sizes, text=judged.text, on_progress=on_progress)


def _too_far(settings: Export, measured: Parity, bound: float) -> str:
    return (
        f"the export to {settings.kind} {settings.quant} strays from its source: KL {measured.kl:.3g} nats per token "
        f"on {measured.positions:,} positions of {measured.text}, and at most {bound:g} is allowed (the first choice "
        f"is the same at {measured.agreement:.1%}). Nothing was kept. Take a quantisation with more bits or another "
        f"format, or accept it: max_kl={float(f'{1.1 * measured.kl:.1e}'):g}."
    )


def refuse_target(out: Path, source: Path) -> None:
    """Raise RunDirError unless `out` is free, or holds an earlier export: the folder will be replaced."""
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise RunDirError(f"the export would replace {source}, which it is made from. Choose another with --out.")
    if out.is_file():
        raise RunDirError(f"{out} is a file; an export is a folder. Choose another with --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_artifact(out) or read_card(out).quant is None:
        raise RunDirError(
            f"{out} exists and is no earlier export, so it is not replaced. Choose another with --out, or move it away."
        )


def card_of(source: str | Path) -> Card:
    """The card of a source: an artifact's own, or a short one for any other model. Raises StoreError for a damaged
    artifact."""
    if is_artifact(Path(source)):
        return read_card(source)
    name = str(source)
    return Card(
        name=Path(name).name,
        scope="",
        lineage=(f"the model {Path(name).name}",),
        recipe_yaml="",
        recipe_fingerprint="",
        scores={},
        licence=model_licence(name) or licence_of(name),
        teacher="",
        data_source="",
        created=datetime.now(UTC).date().isoformat(),
        role="model",
        base_model=hub_id(name),
    )


# ---- the stage -------------------------------------------------------------------------------------------------------


def told_of(out: Path, card: Card) -> dict[str, Any]:
    """An export as one row of the table: its folder, format, quantisation, and what was measured."""
    return {"path": str(out), "name": out.name, "format": card.format, "quant": card.quant, **(card.parity or {})}
