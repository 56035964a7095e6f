"""From answers to requests and traces, one row at a time."""

from dataclasses import replace

import pytest

from limbeck.endpoint.messages import ApiChoice
from limbeck.label.replies import EndpointReply, ask_of, keep_text, reply_text
from limbeck.store import context_hash
from tests.label.asking import recipe_of, rows_of

URL = "http://127.0.0.1:1/v1"


@pytest.fixture(scope="module")
def row(tiny_tokenizer):
    return rows_of(tiny_tokenizer, 1)[0]


def test_a_conversation_is_asked_as_it_is_and_a_base_model_gets_the_rendered_prompt(row):
    recipe = recipe_of(URL, "trace.mode.stop=[END]", "trace.mode.top_p=0.5")
    ask = ask_of(recipe, row, [0, 1], 3)
    assert ask.prompt is None and ask.messages == ({"role": "user", "content": "name bird 0"},)
    sampling = ask.sampling
    assert (sampling.n, sampling.max_tokens, sampling.top_p, sampling.stop) == (2, 8, 0.5, ("END",))
    assert ask.logprobs == 3 and ask.seed == sampling.seed
    assert ask_of(recipe_of(URL, "teacher.endpoint=completions"), row, [0]).prompt == row.text
    assert ask_of(recipe, replace(row, messages="", text="plain"), [0]).messages[0]["content"] == "plain"


def test_seeds_depend_on_recipe_row_and_draw_alone(row):
    recipe = recipe_of(URL)
    seeds = {ask_of(recipe, row, [draw]).seed for draw in range(50)}
    assert len(seeds) == 50 and all(0 <= seed < 2**31 for seed in seeds)
    assert ask_of(recipe_of(URL, "teacher.concurrency=3"), row, [7]).seed in seeds
    assert ask_of(recipe_of(URL, "seed=5"), row, [7]).seed not in seeds
    assert ask_of(recipe, replace(row, id="other"), [7]).seed not in seeds


def test_reasoning_stands_before_the_reply(row):
    thought = ApiChoice("42", "stop", None, "6 times 7\n")
    assert reply_text(row, thought) == "<think>\n6 times 7\n</think>\n\n42"
    opened = replace(row, text=row.text + "<think>\n")
    assert reply_text(opened, thought) == "6 times 7\n</think>\n\n42"
    assert reply_text(row, ApiChoice("", "length", None, "6 times")) == "<think>\n6 times"
    assert reply_text(row, ApiChoice("<think>x</think>42", "stop")) == "<think>x</think>42"


def test_traces_and_what_cannot_be_one(row, tiny_tokenizer):
    keeping = keep_text(recipe_of(URL), tiny_tokenizer)
    texts = ["a wren", " ", "a<|im_end|>", "a teal"]
    said = [EndpointReply(draw, ApiChoice(text, "stop"), "m", "") for draw, text in enumerate(texts)]
    made = keeping.make(row, said)
    assert [(draw, "empty" in why or "control" in why) for draw, why in made.failed] == [(1, True), (2, True)]
    assert [trace.meta["draw"] for trace, _ in made.traces] == [0, 3]
    for trace, record in made.traces:
        assert record.hex() == trace.context_hash == context_hash(trace.ids, trace.spans)
        assert "system_fingerprint" not in trace.meta and trace.lm == keeping.header.lm
    assert keeping.make(row, said).traces[0][0].id == made.traces[0][0].id
