"""Side-by-side answers, prepared for the page: runs of text that the teacher shares, and tokens that it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.report.collect import MODELS, dig
from limbeck.report.format import number, percent
from limbeck.text.visible import LINES, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_PROMPT = 1500
LONGEST_ANSWER = 4000
LONGEST_TOKEN = 80
LONGEST_LOOP, LOOP_PIECES = 24, 12
PLAUSIBLE = 0.1
"""A token to which the teacher gives at least this chance is another wording rather than a mistake."""


@dataclass(frozen=True)
class Run:
    """Text of one mark: "same" as the teacher's choice, "near" or "far" from it. `hint` says what that choice was."""

    text: str
    mark: str
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """One model's answer; `agreement` is the share of its tokens that the teacher would have written too, "" where no
    teacher read it. `loops`: it ends in words that come again and again; the share is of what stands before."""

    model: str
    runs: tuple[Run, ...]
    agreement: str
    cut: bool
    loops: bool


@dataclass(frozen=True)
class SampleCard:
    """One prompt with all answers to it."""

    topic: str
    prompt: str
    truth: str
    columns: tuple[Column, ...]


def answer_cards(answers: list[Any], *, marked: bool) -> list[SampleCard]:
    """The cards of answers.json; entries that are not as they should be are left out. `marked`: a teacher read them."""
    cards = []
    for entry in answers:
        columns = tuple(column for model in MODELS if (column := _column(model, dig(entry, "answers", model), marked)))
        if columns:
            prompt, truth = (str(dig(entry, key) or "") for key in ("prompt", "truth"))
            topic = visible(str(dig(entry, "topic") or ""), 80)
            before = visible(prompt, LONGEST_PROMPT, keep=LINES, end=True)
            cards.append(SampleCard(topic, before, visible(truth, LONGEST_PROMPT, keep=LINES), columns))
    return cards


def _column(model: str, answer: Any, marked: bool) -> Column | None:
    pieces = dig(answer, "pieces")
    if not isinstance(pieces, list):
        return None
    good = [piece for piece in pieces if isinstance(piece, list) and len(piece) == 4 and isinstance(piece[0], str)]
    marked = marked and model != "teacher"
    own = good[: loop_start([piece[0] for piece in good])]
    share = percent(sum(bool(piece[1]) for piece in own) / len(own)) if own and marked else ""
    cut = dig(answer, "finish_reason") == "length"
    return Column(model, tuple(_runs(good, marked=marked)), share, cut, len(own) < len(good))


def loop_start(texts: Sequence[str]) -> int:
    """Where an answer begins to say again what it has just said, to its end: behind the first time that a run of up to
    LONGEST_LOOP pieces fills at least LOOP_PIECES more of them, twice over or more; the answer's length where it does
    not."""
    start = len(texts)
    for period in range(1, LONGEST_LOOP + 1):
        same = 0
        while same < len(texts) - period and texts[-1 - same] == texts[-1 - same - period]:
            same += 1
        if same >= max(2 * period, LOOP_PIECES):
            start = min(start, len(texts) - same)
    return start


def _runs(pieces: list[list[Any]], *, marked: bool) -> list[Run]:
    """Neighbouring pieces that agree are joined; the others stay tokens. Long answers are cut."""
    runs: list[Run] = []
    room = LONGEST_ANSWER
    for text, agrees, chance, instead in pieces:
        if room <= 0:
            break
        text = text[:room]
        room -= len(text)
        if agrees or not marked:
            before = runs.pop().text if runs and runs[-1].mark == "same" else ""
            runs.append(Run(before + visible(text, keep=LINES), "same"))
        else:
            runs.append(_other(text, number(chance) or 0.0, str(instead)))
    return runs


def _other(text: str, chance: float, instead: str) -> Run:
    shown = visible(text, keep=LINES).replace("\n", "↵\n")
    would = visible(instead, LONGEST_TOKEN, keep=LINES).replace("\n", "↵").replace(" ", "␣")
    hint = f"the teacher would have written “{would}” here; it gave this token {percent(chance)}"
    return Run(shown, "near" if chance >= PLAUSIBLE else "far", hint)
