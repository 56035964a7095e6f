"""What of its transfer set goes with an expert: prompts with how well it does there, rows to score again, its scope."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from limbeck.errors import DataError, ExpertError
from limbeck.evaluate.compare import TEACHER
from limbeck.evaluate.task_stage import choose_rows
from limbeck.experts.card import PromptRow, Scope
from limbeck.experts.verify import MOST_PROMPT, PROMPTS, TOKENS
from limbeck.models.card import shown_source
from limbeck.recipe import DatasetSource
from limbeck.recipe.languages import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.experts.finished_run import FinishedRun
    from limbeck.experts.registry import Registry
    from limbeck.experts.scoring import HeldOut, Sums
    from limbeck.text.redact import Redactor
    from limbeck.types import LocalLM, Row

MOST_TRAIN = 20_000
"""Prompts of training rows that are kept (a seeded sample); those of held-out rows all are."""
EXAMPLES = 20
EXAMPLE_LENGTH = 500
MOST_TOPICS = 64


@dataclass(frozen=True)
class PromptChoice:
    """What the command line says of a new expert. `artifact` is an exported folder instead of the run's own model (in
    the run, or anywhere); `counter` are texts, or files of one prompt per line; `prompts` false stores no text."""

    name: str
    version: str | None = None
    domain: str | None = None
    description: str | None = None
    languages: tuple[str, ...] = ()
    counter: tuple[str, ...] = ()
    artifact: Path | None = None
    role: str = "student"
    prompts: bool = True

    def refuse_unknown(self) -> None:
        """Raises ExpertError for a role or a language that there is not."""
        if self.role not in ("student", "twin"):
            raise ExpertError(f"the role is {self.role!r}; allowed are student and twin.")
        unknown = [code for code in self.languages if code not in SCRIPTS]
        if unknown:
            raise ExpertError(f"{', '.join(unknown)} is no code of a language; such are en, de, zh, ar.")


@dataclass(frozen=True)
class TransferSet:
    """The transfer set as an expert keeps it: keys redacted, and rows that held one left out of what is replayed."""

    finished: FinishedRun
    lm: LocalLM
    choice: PromptChoice
    redactor: Redactor
    heldout: list[HeldOut]

    @classmethod
    def of(cls, finished: FinishedRun, lm: LocalLM, choice: PromptChoice, redactor: Redactor) -> TransferSet:
        clean = []
        for row in finished.heldout(lm.tokenizer):
            text = str(lm.tokenizer.decode(row.ids, clean_up_tokenization_spaces=False))
            if redactor.text(text) == text and len(row.ids) <= (lm.max_context or len(row.ids)):
                clean.append(row)
        return cls(finished, lm, choice, redactor, clean)

    def replayed(self) -> list[tuple[str, list[int]]]:
        """Prompts to answer, as tokens: beginnings of held-out rows; where no text is stored, tokens by lot."""
        if not self.choice.prompts:
            draw = np.random.default_rng(self.finished.recipe.seed)
            return [(f"drawn-{n}", draw.integers(0, self.lm.vocab, 16).tolist()) for n in range(PROMPTS)]
        room = max((self.lm.max_context or 2**30) - TOKENS, 1)
        found = []
        for row in sample(self.heldout, PROMPTS, self.finished.recipe.seed):
            start = row.spans[0][0]
            end = start if start > 1 else max(min(TOKENS, len(row.ids) // 2), 1)
            found.append((row.id, row.ids[max(end - min(MOST_PROMPT, room), 0) : end]))
        return found

    def prompt_rows(self, own: Sums, own_artifact: bool, say: Callable[[str], None]) -> tuple[str, list[PromptRow]]:
        """The measure of quality, and every prompt: a sample of the training rows, all held-out ones, and the problems
        of the evaluation's tasks."""
        rows, problems = self.finished.rows, self.finished.problems
        seed = self.finished.recipe.seed
        train = sample([row for row in rows if row.split == "train"], MOST_TRAIN, seed)
        heldout = {row.id: row for row in rows if row.split == "heldout"}
        measure = "correct" if problems else "agreement"
        quality = self._correct() if problems else self._agreement(own, own_artifact)
        asked = self._asked(say) if problems else {}
        found = [self._row(row, {}) for row in train]
        for id, row in {**heldout, **asked}.items():
            found.append(self._row(replace(row, split="heldout"), quality.get(id, {})))
        return measure, [row for row in found if row.prompt.strip()]

    def _row(self, row: Row, quality: Mapping[str, float]) -> PromptRow:
        prompt = self.redactor.text(prompt_of(row, self.lm.tokenizer))
        return PromptRow(row.id, row.split, prompt, self.redactor.text(row.topic), dict(quality))

    def _correct(self) -> dict[str, dict[str, float]]:
        names = {self.choice.role: "expert", TEACHER: "teacher"}
        names |= {"twin": "twin"} if self.choice.role == "student" else {}
        return {
            problem.id: {names[model]: share for model, share in problem.correct.items() if model in names}
            for problem in self.finished.problems
        }

    def _agreement(self, own: Sums, own_artifact: bool) -> dict[str, dict[str, float]]:
        finished, role = self.finished, self.choice.role
        sums = own if not own_artifact and "agreement" in own.metrics else finished.sums(role)
        found = {id: {"expert": share, "teacher": 1.0} for id, share in finished.agreement(sums).items()}
        if role == "student" and "twin" in finished.models:
            for id, share in finished.agreement(finished.sums("twin")).items():
                if id in found:
                    found[id]["twin"] = share
        return found

    def _asked(self, say: Callable[[str], None]) -> dict[str, Row]:
        """The problems as rows, read again from where they came from."""
        tasks = self.finished.recipe.evaluate.tasks
        assert tasks is not None
        ids = {problem.id for problem in self.finished.problems}
        try:
            rows = choose_rows(
                self.finished.recipe, tasks, self.lm, [row for row in self.finished.rows if row.split == "heldout"]
            )
        except DataError as error:
            say(f"the problems of the evaluation cannot be read again, so their prompts are left out: {error}")
            return {}
        return {row.id: row for row in rows if row.id in ids}

    # ---- scope ----

    def scope(self, rows: Sequence[PromptRow], registry: Registry) -> Scope:
        """What the command line says, else what the recipe says; examples are drawn from the training prompts."""
        recipe, choice = self.finished.recipe, self.choice
        train = [row.prompt for row in rows if row.split == "train"]
        examples = sample(train, EXAMPLES, recipe.seed + 1) if choice.prompts else []
        counter = [line for text in choice.counter for line in _lines(text)] or self._of_others(registry, rows)
        return Scope(
            domain=choice.domain or recipe.name,
            description=self.redactor.text(choice.description or recipe.scope),
            languages=choice.languages,
            examples=tuple(text[:EXAMPLE_LENGTH] for text in examples),
            counter_examples=tuple(self.redactor.text(text)[:EXAMPLE_LENGTH] for text in counter[:EXAMPLES]),
            transfer_set=self._facts(),
            max_input_tokens=self.lm.max_context,
            chat=any(row.messages for row in self.finished.rows),
        )

    def _of_others(self, registry: Registry, rows: Sequence[PromptRow]) -> list[str]:
        """Examples of the other experts, in turn; none of an expert that learnt what this one did as well."""
        others = registry.experts() if (registry.path / "experts").is_dir() else []
        own = {row.prompt[:EXAMPLE_LENGTH] for row in rows}
        lists = [expert.card.scope.examples for expert in others if expert.name != self.choice.name]
        lists = [texts for texts in lists if own.isdisjoint(texts)]
        most = max(map(len, lists), default=0)
        return [texts[number] for number in range(most) for texts in lists if number < len(texts)][:EXAMPLES]

    def _facts(self) -> dict[str, Any]:
        source, rows = self.finished.recipe.data.source, self.finished.rows
        named = {"dataset": source.path} if isinstance(source, DatasetSource) else {}
        train = [row for row in rows if row.split == "train"]
        topics = Counter(self.redactor.text(row.topic) for row in train if row.topic).most_common(MOST_TOPICS)
        return {
            "source": self.redactor.text(
                shown_source(": ".join(filter(None, (source.kind, getattr(source, "path", None)))))
            ),
            **(named if named and not Path(named["dataset"]).exists() else {}),
            "licence": "not stated",
            "rows": len(train),
            "heldout_rows": len(rows) - len(train),
            "tokens": sum(len(row.ids) for row in train),
            "longest_row": max((len(row.ids) for row in train), default=0),
            **({"topics": dict(topics)} if topics else {}),
        }


def _lines(text: str) -> list[str]:
    """A file's prompts, one per line; or the text itself."""
    file = Path(text)
    if "\n" not in text and len(text) < 4096 and file.is_file():
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [text.strip()] if text.strip() else []


# ---- prompts, as a router sees them ----------------------------------------------------------------------------------

FIRST_TOKENS = 64
"""Of plain text, which has no prompt: its beginning stands for one."""
LONGEST = 8000
"""Characters of a prompt that are kept."""

T = TypeVar("T")


def prompt_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first thing that the user says; of a pair without a template its prompt; of plain text its beginning."""
    if row.messages:
        return first_user_turn(json.loads(row.messages))[:LONGEST]
    start = row.spans[0][0] if row.spans else None
    if start is None:
        return row.text[:LONGEST]
    kept = row.ids[: start if start > 1 else FIRST_TOKENS]
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))[:LONGEST]


def first_user_turn(messages: Sequence[dict[str, object]]) -> str:
    """Its text; "" when the user says nothing. Content may be text or parts of which some are text."""
    for turn in messages:
        if turn.get("role") == "user":
            content = turn.get("content")
            if isinstance(content, list):
                return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
            return str(content or "")
    return ""


def sample(items: Sequence[T], most: int, seed: int) -> list[T]:
    """At most `most` of them, drawn without replacement, in their order; the same for a seed."""
    if len(items) <= most:
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), most))
    return [items[index] for index in chosen]
