"""Rejection sampling: what a reply costs does not depend on how many came before it."""

import pytest

from limbeck.curate.verdicts import Verdict, unreadable
from limbeck.errors import Stopped
from limbeck.label import replies as replies_module
from limbeck.label.rejection import RejectionSampler
from limbeck.store import reply_log
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY, ask, recipe_of, rows_of


class CountingChecker:
    def __init__(self):
        self.judged = []

    def verdict(self, reply: str, reference: str) -> Verdict:
        self.judged.append(reply)
        return Verdict("right" in reply, "")


@pytest.fixture
def row(tiny_tokenizer):
    return rows_of(tiny_tokenizer, 1)[0]


def test_each_reply_is_judged_once_when_it_comes(row):
    checker = CountingChecker()
    sampler = RejectionSampler(checker, 2)  # type: ignore[arg-type]
    replies = [f"wrong {number}" for number in range(62)] + ["right 1", "right 2"]
    assert [sampler.add(row, reply) for reply in replies] == [False] * 63 + [True]
    assert checker.judged == replies
    assert sampler.needed(row, [*replies, "right 3"]) == 64 and len(checker.judged) == 64


def test_no_more_replies_are_asked_for_where_the_reference_cannot_be_read(row):
    class Unreadable(CountingChecker):
        def verdict(self, reply: str, reference: str) -> Verdict:
            return unreadable(reference, "is no number")

    sampler = RejectionSampler(Unreadable(), 2)  # type: ignore[arg-type]
    assert sampler.add(row, "right") and sampler.needed(row, ["right"]) is None


def test_what_is_needed_depends_on_the_order_of_draws_alone(row):
    sampler = RejectionSampler(CountingChecker(), 2)  # type: ignore[arg-type]
    for reply in ("right b", "wrong", "right a"):
        sampler.add(row, reply)
    assert sampler.needed(row, ["right a", None, "wrong", "right b", "right c"]) == 4
    assert sampler.needed(row, ["right a", None, "wrong"]) is None


def test_equal_replies_are_judged_once_and_a_row_can_be_forgotten(row):
    checker = CountingChecker()
    sampler = RejectionSampler(checker, 3)  # type: ignore[arg-type]
    assert [sampler.add(row, "right") for _ in range(3)] == [False, False, True] and len(checker.judged) == 1
    sampler.forget(row)
    assert not sampler.add(row, "right") and len(checker.judged) == 2


def test_the_reply_log_is_read_once_and_replies_are_parsed_once(tiny_tokenizer, tmp_path, monkeypatch):
    """Twelve draws a row: a first sitting is stopped in the middle. The second one reads the log when it starts; after
    that no byte of it is read, and every reply is parsed at most twice: when a row is resumed, and for its shard."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rejection = "trace.mode.rejection={verifier: {kind: regex, pattern: no such bird}, num_correct: 1}"
    rows = rows_of(tiny_tokenizer, 6)
    opened, parsed = [], []
    whole_lines, parse = reply_log.whole_lines, replies_module.answer_from_json
    monkeypatch.setattr(reply_log, "whole_lines", lambda path: (opened.append(path.name), whole_lines(path))[1])
    monkeypatch.setattr(reply_log.os, "pread", None)  # whoever reads a line again fails
    monkeypatch.setattr(replies_module, "answer_from_json", lambda value: (parsed.append(1), parse(value))[1])
    with FakeServer() as server:
        recipe = recipe_of(server.url, "trace.mode.n=12", rejection, "teacher.concurrency=3")
        with pytest.raises(Stopped):
            ask(recipe, tmp_path / "traces", tiny_tokenizer, rows, stop_asked=lambda: len(server.counts) > 20)
        first = len(server.counts)
        assert opened == ["journal.jsonl"] and 0 < first < 72
        opened.clear()
        store = ask(recipe, tmp_path / "traces", tiny_tokenizer, rows)
        assert len(server.counts) == 72 and set(server.counts.values()) == {1}
    assert len(store.traces()) == 72 and opened == ["journal.jsonl"] and len(parsed) <= 72 + 2 * first
