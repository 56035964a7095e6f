"""`limbeck experts`: from a finished run to an expert, and what a registry holds."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.errors import ExpertError, LimbeckError, StoreError
from limbeck.experts.card import FIRST, ExpertCard, check_name, check_version, following
from limbeck.experts.finished_run import FinishedRun
from limbeck.experts.registry import Registry
from limbeck.experts.scoring import HELDOUT, REPRODUCED, jsonl, score_rows, scores_of
from limbeck.experts.transfer_set import PromptChoice, TransferSet
from limbeck.experts.verify import PROMPTS, REPLAY, counted, verify_expert, write_replays
from limbeck.models.open import open_lm
from limbeck.models.weights import pickle_only
from limbeck.system.atomic import verify_dir
from limbeck.system.cost import disk_bytes, measure
from limbeck.system.sealed import REMADE, read_json
from limbeck.text.redact import make_redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.experts.registry import Expert
    from limbeck.experts.scoring import Sums
    from limbeck.experts.verify import Verification
    from limbeck.types import OnProgress

DTYPES = ("float32", "bfloat16", "float16")


def add_expert(
    run: Path | str,
    registry: Registry,
    choice: PromptChoice,
    *,
    on_progress: OnProgress = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Expert:
    """Make an expert of a finished run. The model is opened and answers, so that what is stored is what it does.

    Raises ExpertError for a name, version, language or artifact that cannot be, RunDirError for an unfinished run,
    StoreError for damaged files of it, and what `open_lm` raises."""
    check_name(choice.name)
    choice.refuse_unknown()
    version = check_version(choice.version or _next_version(registry, choice.name))
    if registry.path.exists() and version in registry.versions(choice.name):
        raise ExpertError(
            f"the expert {choice.name} {version} is in {registry.path} already, and a version is never changed. Leave "
            "out --version for the next one, or remove that one first."
        )
    finished = FinishedRun.open(Path(run))
    artifact, facts = _artifact(finished, choice)
    on_message(f"opening {artifact}")
    with measure() as before:
        pass
    with measure() as during:
        lm = open_lm(artifact, dtype=facts["dtype"])
        kept = TransferSet.of(finished, lm, choice, make_redactor(["none"]))
        replays, speed = write_replays(lm, kept.replayed(), counted(on_progress, "replay", PROMPTS, "answers"))
    own = score_rows(lm, kept.heldout, counted(on_progress, "score", len(kept.heldout), "rows"))
    own_artifact = choice.artifact is None
    scores, notes = _scores(finished, choice.role, own, own_artifact)
    quality, rows = kept.prompt_rows(own, own_artifact, on_message)
    size = disk_bytes(artifact)
    facts["recipe_yaml"] = kept.redactor.text(facts["recipe_yaml"])
    card = ExpertCard(
        scope=kept.scope(rows, registry),
        created=datetime.now(UTC).date().isoformat(),
        role=choice.role,
        parameters=int(finished.summary.get(choice.role, {}).get("parameters", 0)),
        bytes=size,
        memory_bytes=max(during.peak_bytes - before.peak_bytes, size),
        tokens_per_second=speed,
        machine=machine(),
        teacher_parameters=int(finished.summary.get("teacher", {}).get("parameters", 0)),
        teacher_licence=facts["licence"],
        fingerprint=lm.fingerprint,
        tokenizer_hash=lm.tokenizer_hash,
        quality=quality,
        notes=notes,
        scores=scores,
        **facts,
    )
    texts = {REPLAY: jsonl(replays), **({HELDOUT: jsonl(kept.heldout)} if choice.prompts else {})}
    stored = rows if choice.prompts else []
    return registry.add(choice.name, version, card, artifact, prompts=stored, files=texts)


def _next_version(registry: Registry, name: str) -> str:
    versions = registry.versions(name) if registry.path.exists() else []
    return following(versions[-1]) if versions else FIRST


def machine() -> str:
    """What speed and memory were measured on, without its name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = named[0] if named else cpu
    found = f"{cpu}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, {found}" if torch.cuda.is_available() else found


# ---- the artifact ----------------------------------------------------------------------------------------------------


def _artifact(finished: FinishedRun, choice: PromptChoice) -> tuple[Path, dict[str, Any]]:
    """The folder of the model, whole and not pickled, and what its card says."""
    own = finished.path / "train" / choice.role / "artifact"
    path = own
    if choice.artifact is not None:
        path = choice.artifact if choice.artifact.exists() else finished.path / choice.artifact
    if not (path / "limbeck.json").is_file():
        has = [role for role in ("student", "twin") if (finished.path / "train" / role / "artifact").exists()]
        raise ExpertError(
            f"{path} is not an artifact (it has no limbeck.json). This run has: {', '.join(has) or 'no model'}; an "
            "export is a folder that `limbeck export` wrote, such as RUN/export/gguf-q8_0."
        )
    for folder in {path, own} if own.exists() else {path}:
        if problem := pickle_only(folder) or verify_dir(folder):
            raise StoreError(f"{problem}. Write the artifact again: run `limbeck run` or `limbeck export`.")
    card = read_json(path / "limbeck.json", REMADE)
    base = read_json(own / "limbeck.json", REMADE) if own.exists() else card
    form = str(card.get("format") or "safetensors")
    facts = {
        "format": form,
        "quant": str(card.get("quant") or _stored_dtype(path)),
        "dtype": _stored_dtype(path) if _stored_dtype(path) in DTYPES and form == "safetensors" else "auto",
        "parity": {key: value for key, value in (card.get("parity") or {}).items() if value is not None},
        "lineage": tuple(str(step) for step in card.get("lineage") or base["lineage"]),
        **{key: str(card.get(key) or base[key]) for key in ("teacher", "data_source", "recipe_yaml")},
        "recipe_fingerprint": str(card.get("recipe_fingerprint")),
        **{key: card.get(key) or base.get(key) for key in ("base_model", "licence")},
    }
    if base["recipe_fingerprint"] != facts["recipe_fingerprint"]:
        raise ExpertError(
            f"{path} comes from another recipe than the run {finished.path} ({facts['recipe_fingerprint']} against "
            f"{base['recipe_fingerprint']}); its scores would be somebody else's. Give the run that it was made in."
        )
    return path, facts


def _stored_dtype(path: Path) -> str:
    config = path / "config.json"
    values = read_json(config, REMADE) if config.is_file() else {}
    return str(values.get("dtype") or values.get("torch_dtype") or "")


def _scores(finished: FinishedRun, role: str, own: Sums, own_artifact: bool) -> tuple[Any, tuple[str, ...]]:
    """Scores of everyone. Of an export what it was measured to do itself: the rest is its source's, and left out."""
    scores = finished.card_scores(role)
    if own_artifact or "student" not in scores:
        return scores, ()
    measured = scores_of(own)
    left_out = [name for name in scores["student"] if name not in measured]
    scores["student"] = {name: measured[name] for name in REPRODUCED if name in measured}
    note = f"{', '.join(left_out)} of this expert were not measured in its format; those of its source are in the run."
    return scores, ((note,) if left_out else ())


# ---- verifying -------------------------------------------------------------------------------------------------------


def verify_all(
    registry: Registry, name: str | None, version: str | None, *, on_progress: OnProgress
) -> tuple[list[Verification], dict[str, str]]:
    """One expert, or the newest version of each: what was found, and what could not be opened, with its reason.

    Raises ExpertError when there is none of this name, and when a version is given without a name."""
    fresh = Registry(registry.path)  # every file is hashed now, whatever was seen before
    if name is None and version is not None:
        raise ExpertError("a --version needs the NAME of the expert that it is of.")
    if name is not None:
        return [verify_expert(fresh.expert(name, version), on_progress=on_progress)], {}
    found, broken = [], fresh.damaged()
    for expert in fresh.experts():
        try:
            found.append(verify_expert(expert, on_progress=on_progress))
        except LimbeckError as error:
            broken[f"{expert.name}/{expert.version}"] = f"{expert.name} {expert.version}: {error}"
    return found, broken
