"""The model card of a student: Hub metadata that tools read, and a page that a person reads."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from yaml import YAMLError

from limbeck.recipe import name_of
from limbeck.recipe.recipe import dump_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.recipe import Recipe

logger = logging.getLogger(__name__)

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
HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "unlicense", "cc0-1.0"),
        *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("openrail", "openrail++", "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "bigcode-openrail-m"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "unknown", "other"),
    }
)
"""Identifiers that the Hub knows; any other licence is written as `other` with its name."""

TERMS = "A student carries what it learned from its teacher and its data: their terms apply to it."
USE = {
    "safetensors": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

Or, with the same interface as every other model: `limbeck.open_lm("PATH")`.""",
    "gguf": """```sh
llama-cli --model PATH/model.gguf
cd PATH && ollama create NAME --file Modelfile
```

Or, with the same interface as every other model: `limbeck.open_lm("PATH")`.""",
    "onnx": """Inputs, outputs and the cache of keys and values have the names that Optimum and transformers.js use.

```python
import onnxruntime

session = onnxruntime.InferenceSession("PATH/model.onnx")
```

Or, with the same interface as every other model: `limbeck.open_lm("PATH")`.""",
}

LIBRARIES = {"safetensors": "transformers", "gguf": "gguf", "onnx": "onnx"}


@dataclass(frozen=True)
class Card:
    """What a reader of an artifact wants to know.

    `teacher` is the name that the recipe gives it, `base_model` its hub id where it has one. `scores` maps "teacher",
    "student" and "twin" to their measures (None: not measured); `role` says which of them this artifact is.
    `created` is an ISO date. `format` and `quant` say how the weights are stored (None: as they were trained); of an
    export, `parity` is what it was measured to lose: the fields of `evaluate.parity.Parity`.
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
    format: str = "safetensors"
    quant: str | None = None
    parity: dict[str, Any] | None = None

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
    local, teacher = recipe.teacher.is_local, name_of(recipe.teacher)
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
    except (OSError, ValueError, YAMLError, HfHubHTTPError, HFValidationError) as error:  # offline, a malformed card
        logger.info("the licence of %s is not known: %s", path, error)
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def render(card: Card) -> str:
    """The README.md of an artifact: YAML metadata as the Hub reads it, then Markdown."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", card.recipe_yaml))])
    facts = {"teacher": card.teacher, "data": shown_source(card.data_source), "made on": card.created}
    whose, licence = "The teacher's" if card.teacher else "The model's", (card.licence or "").strip()
    blocks = [
        f"# {card.name}" + (f" ({card.format} {card.quant})" if card.quant else ""),
        card.scope or (f"A causal language model distilled from {card.teacher}." if card.teacher else ""),
        *(["## Parity", parity_table(card.parity)] if card.parity else []),
        *(["## Scores", *_scores(card)] if card.recipe_yaml else []),
        "## Use",
        USE[card.format],
        "## Lineage",
        "\n".join(f"{number}. {step}" for number, step in enumerate(card.lineage, 1)),
        "\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        "## Licence",
        f"{whose} licence is {licence or 'not stated by its card'}. {TERMS * bool(card.teacher)}".strip(),
    ]
    if card.recipe_yaml:
        blocks += [
            "## Recipe",
            f"Fingerprint `{card.recipe_fingerprint}`. `limbeck run recipe.yaml` makes this model again.",
            f"{fence}yaml\n{card.recipe_yaml.rstrip()}\n{fence}",
        ]
    body = "\n\n".join(block for block in blocks if block)
    return str(ModelCard(f"---\n{_metadata(card).to_yaml()}\n---\n\n{body}\n"))


PARITY = {
    "kl": ("KL(source, export), nats per token", "{:.2g}"),
    "kl_bound": ("bound that was set for it", "{:g}"),
    "agreement": ("same first choice", "{:.2%}"),
    "greedy_equal": ("greedy texts that are equal", "{:.0%}"),
    "positions": ("positions compared", "{:,.0f}"),
}


def parity_table(parity: Mapping[str, Any]) -> str:
    """What an export lost and gained against its source, as Markdown."""
    lines = [f"| {name} | {form.format(parity[key])} |" for key, (name, form) in PARITY.items() if key in parity]
    sizes = (parity["bytes"] / 2**20, parity["source_bytes"] / 2**20)
    rates = (parity["tokens_per_second"], parity["source_tokens_per_second"])
    lines.append("| weights | {:,.1f} MiB (source {:,.1f} MiB) |".format(*sizes))
    lines.append("| writing | {:,.1f} tokens/s (source {:,.1f}) |".format(*rates))
    note = f"Measured against the model that it was exported from, on {parity['text']}."
    return "\n".join([note, "", "| | |", "|---|---:|", *lines])


def _metadata(card: Card) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out rows of {shown_source(card.data_source)}",
            metric_type=key,
            metric_name=QUALITY[key],
            metric_value=value,
        )
        for key, value in card.own_scores.items()
        if key in QUALITY
    ]
    return ModelCardData(
        base_model=card.base_model,
        base_model_relation=("quantized" if card.quant else "finetune") if card.base_model else None,
        eval_results=results or None,
        library_name=LIBRARIES[card.format],
        **licence_metadata(card.licence, card.base_model),
        model_name=card.name,
        pipeline_tag="text-generation",
        tags=[*(["distillation"] if card.teacher else []), "limbeck"],
    )


def licence_metadata(licence: str | None, base_model: str | None) -> dict[str, Any]:
    """The Hub's keys for a licence as people write it ("Apache License, Version 2.0"): its identifier, or else `other`
    with its name, and where its text is found."""
    licence = (licence or "").strip() or "unknown"
    words = re.sub(r"\b(the|licen[sc]e|version|gnu|community|international)\b|[,()]", " ", licence.lower())
    plain = re.sub(r"\bv(?=\d)|(?<=gpl)v?(?=\d)", " ", words).replace("_", "-")
    name = re.sub(r"[\s-]+", "-", plain).strip("-")
    for form in (licence.lower(), name, f"{name}.0", name.replace("-", "")):
        if form in HUB_LICENCES:
            return {"license": form}
    link = licence if licence.startswith("http") else base_model and f"https://huggingface.co/{base_model}"
    return {"license": "other", "license_name": licence, **({"license_link": link} if link else {})}


def shown_source(source: str) -> str:
    """Where rows come from, for everyone: the place of a file on somebody's machine is nobody else's affair."""
    kind, _, path = source.partition(": ")
    return source if kind == "datasets" or not path else f"{kind}: {Path(path).name}"


def _scores(card: Card) -> list[str]:
    if not card.scores:
        return ["Not evaluated yet."]
    names = list(card.scores)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for key, meaning in (QUALITY | COST).items():
        cells = [_cell(key, card.scores[name].get(key)) for name in names]
        if any(cells):
            lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return [
        f"On held-out rows of {shown_source(card.data_source)}. This folder is the **{card.role}**.",
        "\n".join(lines),
    ]


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
