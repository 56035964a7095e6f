"""`limbeck route`: a router from what a registry's experts were made for, and its decisions.

REGISTRY/router/cross.jsonl is read where it exists: {"prompt", "domain", "quality": {model: 0 to 1}, "logp"?: number} a
line, held-out prompts that several models answered. `domain` is the expert whose kind the prompt is of.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError
from limbeck.experts.registry import Registry
from limbeck.router.dataset import TEACHER, FitSettings, PromptCase
from limbeck.router.features import plain
from limbeck.router.fit import fit
from limbeck.router.frontier import RouteTarget
from limbeck.router.page import chart, page, standalone
from limbeck.router.router import Router, experts_fingerprint, write
from limbeck.router.scores import score_router
from limbeck.system.atomic import atomic_dir
from limbeck.system.units import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from limbeck.experts.registry import Expert
    from limbeck.router.router import RouteDecision

FOLDER, CROSS = "router", "cross.jsonl"
ASSUMED = 0.5
MOST_OUTSIDE = 20_000


@dataclass(frozen=True)
class RouteChoice:
    """What the command line says. `costs` of a prompt by model, in any unit; `generalists` are experts of the registry
    that nothing is routed to, for comparison; `out_of_scope` a file of prompts of nobody's kind, which only judge;
    `encoder` a folder, instead of hashed n-grams."""

    target: RouteTarget = field(default_factory=lambda: RouteTarget("quality", 0.95))
    costs: Mapping[str, float] = field(default_factory=dict)
    generalists: tuple[str, ...] = ()
    keep: float = 0.95
    out_of_scope: Path | None = None
    encoder: Path | None = None
    seed: int = 0


def fit_router(
    path: Path, choice: RouteChoice, *, on_message: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Fit REGISTRY/router on the newest versions of all experts, and return its report. The folder appears whole.

    Raises ExpertError where there is no registry, DataError where prompts or costs are missing or a file is malformed,
    BudgetError when the disk is full."""
    registry = Registry(path)
    experts = registry.experts()
    for name, reason in registry.damaged().items():
        on_message(f"{name} is left out: {reason}")
    routed = [expert for expert in experts if expert.name not in choice.generalists]
    for name in sorted({*choice.generalists} - {expert.name for expert in experts}):
        known = ", ".join(expert.name for expert in experts) or "none"
        raise DataError(f"--generalist {name}: there is no such expert; there are: {known}.")
    names = [expert.name for expert in routed]
    cross = _cross(path / FOLDER / CROSS, names, on_message)
    _refuse_unknown(choice, {expert.name for expert in experts} | {model for case in cross for model in case.quality})
    costs, notes = _costs(experts, choice)
    compared = _compared(cross, names, costs, on_message)
    wish = FitSettings(
        costs={name: cost for name, cost in costs.items() if name in (*names, TEACHER, *compared)},
        target=choice.target,
        keep=choice.keep,
        compared=compared,
        counter={expert.name: expert.card.scope.counter_examples for expert in routed},
        encoder=str(choice.encoder.resolve()) if choice.encoder else "",
        seed=choice.seed,
    )
    outside = _outside(choice.out_of_scope) if choice.out_of_scope else []
    for note in notes:
        on_message(note)
    fitted = fit(_cases(routed, cross), wish)
    versions = {expert.name: expert.version for expert in experts}
    settings = replace(fitted.router.settings, fitted_on=versions, fingerprint=experts_fingerprint(versions))
    fitted = replace(fitted, router=replace(fitted.router, settings=settings))
    report = score_router(fitted, outside)
    report["notes"] += notes
    report = json.loads(json.dumps(_without_nan(report), allow_nan=False))
    _write(path / FOLDER, fitted.router, report)
    return report


def ask_router(path: Path, prompt: str) -> RouteDecision:
    """Where a prompt would go. Raises ExpertError without a registry, StoreError for a router that is missing, damaged,
    or was fitted on other experts than the registry has now."""
    versions = {expert.name: expert.version for expert in Registry(path).experts()}
    return Router.open(path / FOLDER, expect=experts_fingerprint(versions)).decide(prompt)


def _write(folder: Path, router: Router, report: dict[str, Any]) -> None:
    cross = folder / CROSS
    kept = cross.read_bytes() if cross.exists() else None
    with atomic_dir(folder) as tmp:
        write(tmp, router)
        (tmp / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
        (tmp / "report.html").write_text(page(report), encoding="utf-8")
        if report["routing"]:
            (tmp / "frontier.svg").write_text(standalone(chart(report["routing"])), encoding="utf-8")
        if kept is not None:
            (tmp / CROSS).write_bytes(kept)


def _without_nan(value: Any) -> Any:
    """JSON has no word for what was not measured but null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- what is read ----------------------------------------------------------------------------------------------------


def _cases(experts: Sequence[Expert], cross: Sequence[PromptCase]) -> Iterable[PromptCase]:
    """Prompts of the experts; held-out ones with all that is known of their answers."""
    known = {(case.expert, plain(case.prompt)): case for case in cross}
    for expert in experts:
        for row in expert.prompts():
            quality = {
                {"expert": expert.name, "teacher": TEACHER}[model]: value
                for model, value in row.quality.items()
                if model in ("expert", "teacher")
            }
            other = known.pop((expert.name, plain(row.prompt)), None) if row.split == "heldout" else None
            if other is not None:
                quality |= other.quality
            yield PromptCase(expert.name, row.prompt, row.split, quality, other.logp if other else None)
    yield from known.values()


def _cross(path: Path, names: Sequence[str], say: Callable[[str], None]) -> list[PromptCase]:
    if not path.exists():
        return []
    found, strangers = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            entry = json.loads(line)
            case = PromptCase(entry["domain"], entry["prompt"], "heldout", dict(entry["quality"]), entry.get("logp"))
            sound = isinstance(case.expert, str) and isinstance(case.prompt, str)
            sound = sound and all(_share(value) for value in case.quality.values())
            sound = sound and (case.logp is None or isinstance(case.logp, int | float))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise DataError(
                f'{path}, line {number} is not {{"prompt": text, "domain": expert, "quality": {{model: 0 to 1}}}}. '
                "Write the file anew, or take it away."
            )
        if case.expert in names:
            found.append(case)
        else:
            strangers += 1
    if strangers:
        say(f"{path.name}: {strangers} prompts are of no expert that is routed to; they are left out.")
    return found


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _compared(
    cross: Sequence[PromptCase], names: Sequence[str], costs: Mapping[str, float], say: Callable[[str], None]
) -> tuple[str, ...]:
    """Other models that were judged. One whose cost is not known cannot be put beside the router, and is named."""
    models = sorted({model for case in cross for model in case.quality} - {*names, TEACHER})
    for name in models:
        if name not in costs:
            say(f"{name} was judged, but what a prompt costs there is not known: --cost {name}=0.5 puts it beside.")
    return tuple(name for name in models if name in costs)


def _refuse_unknown(choice: RouteChoice, models: set[str]) -> None:
    """A cost of what there is not would be without effect."""
    for name in sorted({*choice.costs} - models - {TEACHER}):
        raise DataError(f"--cost {name}: there is no such expert here; there are: {', '.join(sorted(models))}.")


def _costs(experts: Sequence[Expert], choice: RouteChoice) -> tuple[dict[str, float], list[str]]:
    """Costs as shares of the teacher's, and what was assumed. What is not said is taken as proportional to parameters;
    where the teacher's are not known (it was behind an endpoint), the largest expert counts as half of it."""
    scale = choice.costs.get(TEACHER, 1.0)
    if not (math.isfinite(scale) and scale > 0):
        raise DataError(f"--cost teacher={scale}: it must be above 0; other costs are taken as shares of it.")
    costs = {TEACHER: 1.0} | {name: cost / scale for name, cost in choice.costs.items() if name != TEACHER}
    missing = [expert for expert in experts if expert.name not in costs]
    if not missing:
        return costs, []
    said = " ".join(f"--cost {expert.name}=..." for expert in missing)
    teacher = max(expert.card.teacher_parameters for expert in experts)
    known = teacher > 0 and all(expert.card.parameters for expert in missing)
    if choice.target.kind == "cost" and not known:
        raise DataError(f"--max-cost needs to know what a prompt costs at each expert, the teacher's being 1: {said}")
    largest = max(expert.card.parameters for expert in experts) or 1
    whole = teacher if known else largest / ASSUMED
    for expert in missing:
        costs[expert.name] = (expert.card.parameters or largest) / whole
    shares = ", ".join(f"{expert.name} {costs[expert.name]:.2f}" for expert in missing)
    how = f"of the teacher's {count(teacher)}" if known else f"the largest expert as {ASSUMED}"
    return costs, [f"What a prompt costs was not said; taken by parameters, {how}: {shares}. {said}"]


def _outside(path: Path) -> list[str]:
    """Prompts of a file: JSON lines with "prompt", or one prompt a line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"--out-of-scope {path} cannot be read: {error.strerror}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        text: Any = line
        if path.suffix in (".jsonl", ".json") and line.strip():
            try:
                text = json.loads(line)["prompt"]
            except (ValueError, TypeError, KeyError, RecursionError):
                text = None
        if not isinstance(text, str):
            raise DataError(
                f'{path}, line {number} is not {{"prompt": text}}; a file of another ending is read as text.'
            )
        if text.strip():
            found.append(text)
    if not found:
        raise DataError(f"{path} has no prompts.")
    return found[:MOST_OUTSIDE]
