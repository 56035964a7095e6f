"""The model card of a student: Hub metadata that tools read, and a page that a person reads."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from yaml import YAMLError

from limbeck.licences import HUB_LICENCES, TERMS
from limbeck.recipe_io import dump_recipe
from limbeck.teachers import is_local, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.recipe import Recipe

QUALITY = {
    "kl": "KL to the teacher, nats per token",
    "agreement": "top-1 agreement with the teacher",
    "perplexity": "perplexity of the true text",
    "ece": "expected calibration error",
}
COST = {
    "parameters": "parameters",
    "bytes": "size of the weights",
    "tokens_per_second": "tokens per second (forward, on the machine of the run)",
}
HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
LICENCES = {"smollm2-135m": "apache-2.0"}
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

Or, with the same interface as every other model: `limbeck.open_lm("PATH")`."""


@dataclass(frozen=True)
class Card:
    """What a reader of an artifact wants to know.

    `teacher` is the name that the recipe gives it, `base_model` its hub id where it has one. `scores` maps "teacher",
    "student" and "twin" to their measures (None: not measured); `role` says which of them this artifact is.
    `created` is an ISO date.
    """

    name: str
    scope: str
    lineage: tuple[str, ...]
    recipe_yaml: str
    recipe_fingerprint: str
    scores: dict[str, dict[str, float | None]]
    licence: str | None
    teacher: str
    data_source: str
    created: str
    role: str = "student"
    base_model: str | None = None

    @property
    def own_scores(self) -> dict[str, float]:
        """The finite scores of the model in this folder."""
        return {key: value for key, value in self.scores.get(self.role, {}).items() if is_number(value)}


def make_card(
    recipe: Recipe,
    *,
    lineage: Sequence[str],
    role: str = "student",
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    licence: str | None = None,
    created: str | None = None,
) -> Card:
    """The card of what a recipe made. `lineage` says in sentences what the model was made from, oldest first.

    The licence is the recipe's, or else `licence`, or else that which the teacher's own card states (a folder's
    README.md, or the hub's).
    """
    local, teacher = is_local(recipe.teacher), name_of(recipe.teacher)
    return Card(
        name=recipe.name if role == "student" else f"{recipe.name}-{role}",
        scope=recipe.scope,
        lineage=tuple(lineage),
        recipe_yaml=dump_recipe(recipe),
        recipe_fingerprint=recipe.fingerprint(),
        scores={who: dict(row) for who, row in (scores or {}).items()},
        licence=recipe.teacher.licence or licence or (licence_of(teacher) if local else None),
        teacher=teacher,
        data_source=": ".join(filter(None, (recipe.data.source.kind, getattr(recipe.data.source, "path", None)))),
        created=created or datetime.now(UTC).date().isoformat(),
        role=role,
        base_model=hub_id(teacher) if local else None,
    )


def hub_id(path: str) -> str | None:
    """The hub id of a model named in a recipe; None for folders and files."""
    if path in HUB_IDS:
        return HUB_IDS[path]
    is_id = re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", path) and not path.endswith(".gguf") and not Path(path).exists()
    return path if is_id else None


def licence_of(path: str) -> str | None:
    """The licence that a model's card states; None when it has no card or states none. Asks the hub for hub ids."""
    if path in LICENCES:
        return LICENCES[path]
    try:
        readme = Path(path) / "README.md"
        if hub_id(path):
            readme = Path(hf_hub_download(path, "README.md"))
        licence = ModelCard.load(readme, ignore_metadata_errors=True).data.get("license") if readme.is_file() else None
    except (OSError, ValueError, YAMLError, HfHubHTTPError, HFValidationError):  # offline, no card, a malformed one
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def render(card: Card) -> str:
    """The README.md of an artifact: YAML metadata as the Hub reads it, then Markdown."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", card.recipe_yaml))])
    blocks = [
        f"# {card.name}",
        card.scope or f"A causal language model distilled from {card.teacher}.",
        "## Scores",
        *_scores(card),
        "## Use",
        USE,
        "## Lineage",
        "\n".join(f"{number}. {step}" for number, step in enumerate(card.lineage, 1)),
        f"- teacher: {card.teacher}\n- data: {card.data_source}\n- made on: {card.created}",
        "## Licence",
        f"The teacher's licence is {card.licence or 'not stated by its card'}. {TERMS}",
        "## Recipe",
        f"Fingerprint `{card.recipe_fingerprint}`. `limbeck run recipe.yaml` makes this model again.",
        f"{fence}yaml\n{card.recipe_yaml.rstrip()}\n{fence}",
    ]
    body = "\n\n".join(block for block in blocks if block)
    return str(ModelCard(f"---\n{_metadata(card).to_yaml()}\n---\n\n{body}\n"))


def _metadata(card: Card) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out rows of {card.data_source}",
            metric_type=key,
            metric_name=QUALITY[key],
            metric_value=value,
        )
        for key, value in card.own_scores.items()
        if key in QUALITY
    ]
    licence = (card.licence or "unknown").strip()
    known = licence.lower() in HUB_LICENCES
    return ModelCardData(
        base_model=card.base_model,
        base_model_relation="finetune" if card.base_model else None,
        eval_results=results or None,
        library_name="transformers",
        license=licence.lower() if known else "other",
        license_name=None if known else licence,
        model_name=card.name,
        pipeline_tag="text-generation",
        tags=["distillation", "limbeck"],
    )


def _scores(card: Card) -> list[str]:
    if not card.scores:
        return ["Not evaluated yet."]
    names = list(card.scores)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for key, meaning in (QUALITY | COST).items():
        cells = [_cell(key, card.scores[name].get(key)) for name in names]
        if any(cells):
            lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return [f"On held-out rows of {card.data_source}. This folder is the **{card.role}**.", "\n".join(lines)]


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number to show: a teacher has no KL to itself, and not every score is finite."""
    return value is not None and math.isfinite(value)


def _cell(key: str, value: float | None) -> str:
    if not is_number(value):
        return ""
    if key == "parameters":
        return f"{value:,.0f}"
    if key == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:.4g}" if key in QUALITY else f"{value:,.0f}"
