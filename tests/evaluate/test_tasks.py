"""Problems answered and judged: what is asked, what is kept on disk, and what is not done twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from limbeck.errors import DataError, Stopped
from limbeck.evaluate.tasks import Question, TaskSettings, answer_questions, exam_key, questions_of, read_attempts
from limbeck.models.hf import HfLM
from limbeck.system.sealed import read_sealed
from limbeck.types import Reply, Row, Sampling
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

QUESTIONS = [
    Question(f"q{number}", np.arange(2 + number % 3, dtype=np.int32) + number, f"{number}?", str(number), "even")
    for number in range(10)
]


@dataclass
class Knowing:
    """An LM that says the first number of its prompt, and every `wrong`-th time something else."""

    name: str = "knowing"
    fingerprint: str = "f"
    tokenizer_hash: str = "t"
    caps: frozenset = frozenset()
    wrong: int = 3
    asked: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
        self.asked.append([len(prompt) for prompt in prompts])
        self.seeds.append(sampling.seed)
        return [[self._reply(int(ids[0]), draw) for draw in range(sampling.n)] for ids in prompts]

    def _reply(self, number: int, draw: int) -> Reply:
        said = "none" if (number + draw) % self.wrong == 0 else str(number)
        return Reply(np.arange(4, dtype=np.int32), f"<think>hm</think>{said}", "stop" if draw % 2 else "length")


def exact(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    return [reply.rpartition("</think>")[2] == reference for reply, reference in pairs]


def exam(**changes: object) -> TaskSettings:
    return replace(TaskSettings(Sampling(n=2, max_tokens=8, seed=1), exact, "exact", batch_tokens=80), **changes)  # type: ignore[arg-type]


def take(models: dict, folder: Path, paper: TaskSettings | None = None, stop: object = lambda: False) -> dict:
    return answer_questions(models, QUESTIONS, paper or exam(), [folder], on_progress=lambda _: None, stop_asked=stop)  # type: ignore[arg-type]


def test_replies_come_back_in_the_order_of_the_questions(tmp_path: Path) -> None:
    lm = Knowing()
    found = take({"student": lm}, tmp_path)["student"]
    for number, replies in enumerate(found):
        assert [one.ok for one in replies] == [(number + draw) % 3 != 0 for draw in range(2)]
        assert [one.finish_reason for one in replies] == ["length", "stop"]
        assert all(one.num_tokens == 4 for one in replies)
        assert replies[0].answer == ("none" if number % 3 == 0 else str(number))


def test_batches_are_of_one_length_and_within_their_tokens(tmp_path: Path) -> None:
    lm = Knowing()
    take({"student": lm}, tmp_path)
    assert [length for batch in lm.asked for length in batch] == sorted(len(one.ids) for one in QUESTIONS)
    assert all(len(batch) * 2 * (max(batch) + 8) <= 80 for batch in lm.asked)
    assert len(set(lm.seeds)) == len(lm.seeds)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = take({"student": Knowing()}, tmp_path)
    lm = Knowing()
    assert take({"student": lm}, tmp_path) == first
    assert not lm.asked


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": Sampling(n=2, max_tokens=8, seed=2)},
        {"sampling": Sampling(n=2, max_tokens=8, seed=1, temperature=0.6)},
        {"judged_by": "numeric"},
    ],
)
def test_other_settings_ask_anew(tmp_path: Path, changed: dict) -> None:
    take({"student": Knowing()}, tmp_path)
    lm = Knowing()
    take({"student": lm}, tmp_path, exam(**changed))
    assert lm.asked


def test_other_weights_and_problems_have_another_key() -> None:
    keys = {
        exam_key(Knowing(), QUESTIONS, exam()),
        exam_key(Knowing(fingerprint="g"), QUESTIONS, exam()),
        exam_key(Knowing(), QUESTIONS[1:], exam()),
        exam_key(Knowing(), [replace(QUESTIONS[0], reference="5"), *QUESTIONS[1:]], exam()),
    }
    assert len(keys) == 4


def test_a_stop_keeps_the_models_that_are_done(tmp_path: Path) -> None:
    first, second = Knowing(), Knowing(fingerprint="g")
    with pytest.raises(Stopped):
        take({"teacher": first, "student": second}, tmp_path, stop=lambda: bool(second.asked))
    assert (tmp_path / "teacher.jsonl").exists() and not (tmp_path / "student.jsonl").exists()
    again = Knowing()
    found = take({"teacher": again, "student": second}, tmp_path)
    assert not again.asked and len(found["student"]) == len(QUESTIONS)


def test_every_reply_is_a_line_that_a_person_can_read(tmp_path: Path) -> None:
    take({"student": Knowing()}, tmp_path)
    assert json.loads((tmp_path / "student.jsonl").read_text().splitlines()[4])["problem"] == "q1"
    head, *lines = [line for _, line in read_sealed(tmp_path / "student.jsonl")]
    assert head["model"] == "knowing" and head["n"] == 2
    assert len(lines) == 20
    assert lines[3] == {
        "problem": "q1",
        "prompt": "1?",
        "reference": "1",
        "topic": "even",
        "draw": 1,
        "text": "<think>hm</think>1",
        "answer": "1",
        "ok": True,
        "finish_reason": "stop",
        "num_tokens": 4,
    }


@pytest.mark.parametrize("damage", ["", "{", '{"key": 3}\n', "[]\n"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    (tmp_path / "student.jsonl").write_text(damage)
    assert read_attempts(tmp_path / "student.jsonl", "key") is None
    assert take({"student": Knowing()}, tmp_path)["student"]


def test_a_file_cut_short_is_made_anew(tmp_path: Path) -> None:
    whole = take({"student": Knowing()}, tmp_path)
    path = tmp_path / "student.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    lm = Knowing()
    assert take({"student": lm}, tmp_path) == whole and lm.asked


def test_an_undecided_verdict_is_kept_as_such(tmp_path: Path) -> None:
    paper = exam(judge=lambda pairs: [None] * len(pairs), judged_by="nobody")
    found = take({"student": Knowing()}, tmp_path, paper)["student"]
    assert {one.ok for replies in found for one in replies} == {None}
    assert take({"student": Knowing()}, tmp_path, paper)["student"] == found


def _row(number: int, reference: str, spans: tuple) -> Row:
    ids = np.arange(3, 11, dtype=np.int32)
    return Row(f"r{number}", "heldout", "", "text", ids, spans, "here", reference=reference)


def test_questions_end_where_the_reply_begins(tiny_tokenizer) -> None:
    rows = [_row(0, "yes", ((5, 8),)), _row(1, "", ((5, 8),)), _row(2, "no", ()), _row(3, "text", ((1, 8),))]
    found = questions_of(rows, tiny_tokenizer)
    assert [(one.id, len(one.ids), one.reference) for one in found] == [("r0", 5, "yes"), ("r2", 8, "no")]
    assert found[0].prompt == tiny_tokenizer.decode(rows[0].ids[:5])
    with pytest.raises(DataError, match="reference"):
        questions_of(rows[1:2], tiny_tokenizer)


def test_a_real_model_answers_alike_twice(tmp_path: Path, tiny_tokenizer) -> None:
    lm = HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="tiny")
    first, second = (take({"student": lm}, tmp_path / name)["student"] for name in ("a", "b"))
    assert first == second
    assert len({one.text for replies in first for one in replies}) > 10
