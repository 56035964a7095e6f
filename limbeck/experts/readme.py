"""README.md of an expert: metadata as the Hub reads it, then a page for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from limbeck.models.card import TERMS, licence_metadata, shown_source
from limbeck.system.units import count, size

if TYPE_CHECKING:
    from limbeck.experts.card import ExpertCard

MEANING = {
    "correct": "right answers to held-out problems",
    "agreement": "top-1 agreement with the teacher",
    "kl": "KL to the teacher, nats per token",
    "perplexity": "perplexity of the true text",
    "accuracy": "top-1 accuracy on the true text",
    "tv": "total variation to the teacher",
}
"""The measures of a card, most telling first."""
SHARES = frozenset({"correct", "agreement", "accuracy"})
WHO = ("teacher", "student", "twin")
SHOWN = 10
LONGEST = 400


def render(name: str, version: str, card: ExpertCard) -> str:
    """The page. What a model or a user wrote is shown as code, and cannot become Markdown, HTML or metadata."""
    scope = card.scope
    blocks = [
        f"# {name} {version}",
        plain(scope.description) or f"An expert for {plain(scope.domain)}, distilled from {plain(card.teacher)}.",
        "## Scope",
        _scope(card),
        *_quoted("For prompts such as", scope.examples),
        *_quoted("Not for prompts such as", scope.counter_examples),
        "## Scores",
        _scores(card),
        "\n".join(f"- {plain(note)}" for note in card.notes),
        "## Cost",
        _cost(card),
        "## Use",
        _use(name),
        "## Lineage",
        "\n".join(f"{number}. {plain(step)}" for number, step in enumerate(card.lineage, 1)) or "Not recorded.",
        f"- teacher: {plain(card.teacher)}\n- data: {plain(shown_source(card.data_source))}\n"
        f"- added on: {plain(card.created)}",
        "## Licence",
        f"The teacher's licence is {plain(card.teacher_licence or 'not stated by its card')}. {TERMS}",
        "## Recipe",
        f"Fingerprint `{plain(card.recipe_fingerprint)}`.",
        _fenced(card.recipe_yaml.rstrip(), "yaml"),
    ]
    body = "\n\n".join(block for block in blocks if block)
    return str(ModelCard(f"---\n{metadata(name, card).to_yaml()}\n---\n\n{body}\n"))


def metadata(name: str, card: ExpertCard) -> ModelCardData:
    """The Hub's model-card metadata."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out rows of {shown_source(card.data_source) or card.scope.domain}",
            metric_type=metric,
            metric_name=meaning,
            metric_value=round(card.scores["student"][metric]["value"], 6),
        )
        for metric, meaning in MEANING.items()
        if metric in card.scores.get("student", {})
    ]
    datasets = [card.scope.transfer_set["dataset"]] if "dataset" in card.scope.transfer_set else None
    return ModelCardData(
        base_model=card.base_model,
        base_model_relation="finetune" if card.base_model else None,
        datasets=datasets,
        eval_results=results or None,
        language=list(card.scope.languages) or None,
        library_name="limbeck",
        **licence_metadata(card.licence, card.base_model),
        model_name=name,
        pipeline_tag="text-generation",
        tags=["distillation", "limbeck", "expert", f"domain:{card.scope.domain}", card.format],
    )


def plain(text: str) -> str:
    """One line of text that is neither Markdown nor HTML."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", flat)


def _cost(card: ExpertCard) -> str:
    return (
        f"{count(card.parameters)} parameters{_of_teacher(card)}, {size(card.bytes)} on disk ({card.format}, "
        f"{plain(card.quant) or 'as trained'}), {size(card.memory_bytes)} in memory, {card.tokens_per_second:.0f} "
        f"tokens per second, one reply at a time ({plain(card.machine) or 'machine not recorded'})."
    )


def _of_teacher(card: ExpertCard) -> str:
    return f" (the teacher has {count(card.teacher_parameters)})" if card.teacher_parameters else ""


def _scope(card: ExpertCard) -> str:
    scope, facts = card.scope, card.scope.transfer_set
    lines = [
        f"- domain: {plain(scope.domain)}",
        f"- languages: {plain(', '.join(scope.languages)) or 'not stated'}",
        f"- input: {'conversations' if scope.chat else 'plain text'}"
        + (f", at most {scope.max_input_tokens:,} tokens with the reply" if scope.max_input_tokens else ""),
    ]
    for key, value in facts.items():
        shown = ", ".join(f"{k} ({v})" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"- transfer set, {plain(key.replace('_', ' '))}: {plain(shown[:LONGEST])}")
    return "\n".join(lines)


def _quoted(title: str, prompts: tuple[str, ...]) -> list[str]:
    if not prompts:
        return []
    return [f"{title}:", "\n\n".join(_fenced(_short(prompt), "text") for prompt in prompts[:SHOWN])]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"


def _fenced(text: str, language: str) -> str:
    if not text:
        return ""
    text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _scores(card: ExpertCard) -> str:
    who = [name for name in WHO if card.scores.get(name)]
    if not who:
        return "Not evaluated."
    lines = [f"| | {' | '.join('**expert**' if name == 'student' else name for name in who)} |"]
    lines.append("|---|" + "---:|" * len(who))
    for metric, meaning in MEANING.items():
        cells = [score_text(metric, card.scores[name].get(metric)) for name in who]
        if any(cells):
            lines.append(f"| {meaning} | {' | '.join(cells)} |")
    counted = {entry["n"] for name in who for entry in card.scores[name].values() if "n" in entry}
    rows = f"On {min(counted):,} to {max(counted):,} held-out rows" if len(counted) > 1 else ""
    rows = rows or (f"On {min(counted):,} held-out rows" if counted else "On held-out rows")
    lost = ""
    if card.parity:
        told = ", ".join(
            f"{plain(key)} {value}" for key, value in card.parity.items() if isinstance(value, int | float)
        )
        lost = f"\n\nThe export against its source: {told}."
    return f"{rows}, with 95 % intervals (rows resampled).\n\n" + "\n".join(lines) + lost


def score_text(metric: str, entry: dict[str, float | int] | None) -> str:
    """A value with its interval; "" for none."""
    if not entry:
        return ""
    show = (lambda value: f"{value:.1%}") if metric in SHARES else (lambda value: f"{value:.3f}")
    value, low, high = (show(entry[key]) for key in ("value", "low", "high"))
    return value if low == high == value else f"{value} ({low} to {high})"


def _use(name: str) -> str:
    return (
        f"```python\nimport limbeck\n\nlm = limbeck.open_lm('{name}/model')  # the folder beside this page\n```\n\n"
        "`limbeck experts pull` brings an expert from the Hub into a registry, and checks it."
    )
