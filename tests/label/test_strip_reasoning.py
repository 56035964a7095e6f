"""Replies whose reasoning is not learnt: what is left, and that nothing is asked or labelled again for it."""

import pytest

import limbeck
from limbeck.errors import DataError
from limbeck.label.strip_reasoning import answer_of, without_thinking
from limbeck.pipeline import stages
from limbeck.recipe.rules.check import check_static
from limbeck.store import TraceStore, context_hash
from limbeck.text.encode import Encoder, Example
from limbeck.types import Row, Trace
from tests.endpoint import fake_answers
from tests.endpoint.fake_server import FakeServer
from tests.pipeline.test_black_box import birds, quick, recipe_of  # noqa: F401  (fixtures)
from tests.recipes import tiny_recipe

STRIP = ["trace.mode.kind=generate", "trace.mode.think=strip", "trace.target.kind=text", "objective.ce_weight=1"]


@pytest.mark.parametrize(
    ("prompt", "reply", "answer"),
    [
        ("p", "<think>a</think>b", "b"),
        ("p", "<think>\na\n</think>\n\n b ", " b "),
        ("p", "a</think>b", "b"),
        ("p", "plain", "plain"),
        ("p", "<think>a", None),
        ("p", "<think>a</think> \n", None),
        ("p", " ", None),
        ("p", "<think>a</think>b<think>c</think>d", "d"),
        ("p<think>\n", "a</think>b", "</think>\n\nb"),
        ("p<think>", "a</think>\n\nb", "\n</think>\n\nb"),
        ("p<think>\n", "a, never ended", None),
    ],
)
def test_answers(prompt, reply, answer):
    assert answer_of(prompt, reply) == answer


def rows_and_traces(tokenizer, replies, *, chat):
    encoder = Encoder(tokenizer, max_length=64, need_reply=False, chat_template=chat)
    rows, traces = [], []
    for number, (reply, reason) in enumerate(replies):
        example = Example(prompt=f"name bird {number}", source=f"birds:{number}")
        made = encoder.encode(example)
        rows.append(Row(f"{number}", "train", "", made.text, made.ids, (), example.source, encoder.asked(example)))
        full = encoder.encode_reply(made.text, reply, chat=chat, closed=reason == "stop", source=example.source)
        meta = {"reply": reply, "finish_reason": reason}
        context = context_hash(full.ids, full.spans)
        traces.append(
            Trace(f"t{number}", f"{number}", "train", "", full.text, full.ids, full.spans, "", "", context, meta)
        )
    return rows, traces


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_left_is_what_the_answer_alone_would_be(tiny_tokenizer, chat):
    said = [("<think>a b c</think>heron", "stop"), ("<think>so", "length"), ("<think>x</think>\n\nteal", "length")]
    rows, traces = rows_and_traces(tiny_tokenizer, said, chat=chat)
    recipe = tiny_recipe(*STRIP, f"data.chat_template={str(chat).lower()}")
    messages: list[str] = []
    found = without_thinking(recipe, tiny_tokenizer, traces, rows, messages.append)
    _, wanted = rows_and_traces(tiny_tokenizer, [("heron", "stop"), ("-", "stop"), ("teal", "length")], chat=chat)
    assert [trace.id for trace in found] == ["t0", "t2"]
    for trace, plain in zip(found, (wanted[0], wanted[2]), strict=True):
        assert trace.ids.tolist() == plain.ids.tolist() and trace.spans == plain.spans
        assert (trace.text, trace.context_hash) == (plain.text, plain.context_hash)
        assert trace.meta["reply"].startswith("<think>")
    assert messages == ["1 of 3 replies have no answer behind their reasoning, and are left out"]
    with pytest.raises(DataError, match="none of 1 replies has an answer"):
        without_thinking(recipe, tiny_tokenizer, traces[1:2], rows, messages.append)


def test_distributions_do_not_fit_a_text_without_its_reasoning():
    assert check_static(tiny_recipe(*STRIP)) == []
    found = check_static(tiny_recipe("trace.mode.kind=generate", "trace.mode.think=strip"))
    assert [problem.where for problem in found] == ["trace.mode.think"]


@pytest.mark.slow
def test_the_store_keeps_all_of_it(tiny_llama, birds, tmp_path, monkeypatch):  # noqa: F811
    """Learning less of the same replies trains anew, and asks for nothing."""
    monkeypatch.setattr(fake_answers, "reply_of", lambda key, index=0: f"<think>hm {key[:3]}</think>heron {key[:2]}")
    learnt, train = [], stages.train_student

    def watched(recipe, items, *rest, **settings):
        learnt.append(items)
        return train(recipe, items, *rest, **settings)

    monkeypatch.setattr(stages, "train_student", watched)
    run = tmp_path / "run"
    with FakeServer() as server:
        recipe = recipe_of(server.url, tiny_llama, birds).override("curate=[{kind: think}]")
        limbeck.run_recipe(recipe, run)
        asked = server.counts.total()
        limbeck.run_recipe(recipe.override("trace.mode.think=strip"), run)
        assert server.counts.total() == asked
    assert all(trace.meta["reply"].startswith("<think>") for trace in TraceStore.open(run / "traces").traces("train"))
    kept, stripped = learnt
    assert all("<think>hm" in trace.text for trace in kept)
    assert len(stripped) == len(kept) and not any("think>" in trace.text for trace in stripped)
    assert sum(trace.num_supervised for trace in stripped) < sum(trace.num_supervised for trace in kept)
