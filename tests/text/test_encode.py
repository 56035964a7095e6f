from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from limbeck.errors import DataError, EmptyRow, LongRow, TeacherError, UnsupervisedRow
from limbeck.text.encode import Encoder, Example
from limbeck.text.tokenizer import compare_roles, compare_tokenizers, load_tokenizer, template_hash, tokenizer_hash
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from limbeck.text.encode import Encoded

TOKENIZER = tiny.build_tokenizer()
ENCODER = Encoder(TOKENIZER, max_length=256)


def supervised(row: Encoded) -> list[str]:
    return [TOKENIZER.decode(row.ids[start:end]) for start, end in row.spans]


def with_bos(*, closing: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that adds <|im_start|> in front, and <|im_end|> behind where `closing`."""
    tokenizer = tiny.build_tokenizer()
    pattern = f"{tiny.START} $A {tiny.END}" if closing else f"{tiny.START} $A"
    tokens = [(tiny.START, 1), (tiny.END, 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=tokens)
    tokenizer.bos_token = tiny.START
    return tokenizer


# ---- plain text ------------------------------------------------------------------------------------------------------


def test_plain_text_is_supervised_from_the_second_token_to_its_end_token() -> None:
    row = ENCODER.encode(Example(text="The rain left."))
    plain = TOKENIZER("The rain left.")["input_ids"]
    assert row.ids.tolist() == [*plain, 2]
    assert row.spans == ((1, len(plain) + 1),)
    assert row.ids.dtype == np.int32
    assert row.text == "The rain left." and not row.truncated


@pytest.mark.parametrize("closing", [False, True])
def test_special_tokens_are_added_once(closing: bool) -> None:
    tokenizer = with_bos(closing=closing)
    row = Encoder(tokenizer, max_length=64).encode(Example(text="The rain"))
    assert row.ids.tolist() == [1, *TOKENIZER("The rain")["input_ids"], 2]
    assert row.spans == ((1, len(row.ids)),)
    prompt = Encoder(tokenizer, max_length=64, need_reply=False).encode(Example(text="The rain"))
    assert prompt.ids.tolist() == [1, *TOKENIZER("The rain")["input_ids"]] and prompt.spans == ()


def test_no_end_token_is_invented() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.eos_token = None
    assert Encoder(tokenizer, max_length=64).encode(Example(text="The rain")).ids.tolist()[-1] != 2


def test_pad_equal_to_eos_changes_nothing() -> None:
    same = tiny.build_tokenizer()
    same.pad_token = tiny.END
    examples = [Example(text="The rain left."), Example(prompt="Who?", completion="The cook.")]
    for example in examples:
        ours, theirs = ENCODER.encode(example), Encoder(same, max_length=256).encode(example)
        assert ours.ids.tolist() == theirs.ids.tolist() and ours.spans == theirs.spans
    assert tokenizer_hash(same) == tokenizer_hash(TOKENIZER) and compare_tokenizers(same, TOKENIZER) == []


# ---- pairs and conversations -----------------------------------------------------------------------------------------


def test_a_pair_is_a_conversation_of_one_turn() -> None:
    row = ENCODER.encode(Example(prompt="Who salted it?", completion="The cook."))
    assert row.text.endswith("<|im_start|>assistant\nThe cook.<|im_end|>\n")
    assert supervised(row) == ["The cook.<|im_end|>"]
    assert row.ids.tolist() == TOKENIZER(row.text, add_special_tokens=False)["input_ids"]


def test_a_pair_without_template_is_joined() -> None:
    row = Encoder(TOKENIZER, max_length=64, chat_template=False).encode(Example(prompt="Who?", completion=" The cook."))
    assert row.text == "Who? The cook." and supervised(row) == [" The cook.<|im_end|>"]


def test_a_token_across_the_seam_belongs_to_the_reply() -> None:
    joined = Encoder(TOKENIZER, max_length=64, chat_template=False)
    row = joined.encode(Example(prompt="The ra", completion="in"))
    (start, end), prompt = row.spans[0], TOKENIZER("The ra")["input_ids"]
    assert "in" in TOKENIZER.decode(row.ids[start:end])
    assert start <= len(prompt) and end == len(row.ids)


def test_every_assistant_turn_of_a_conversation() -> None:
    messages = tiny.chats(1)[0]["messages"]
    row = ENCODER.encode(Example(messages=messages))  # type: ignore[arg-type]
    contents = [m["content"] for m in messages if m["role"] == "assistant"]  # type: ignore[attr-defined]
    assert len(contents) == 2
    assert supervised(row) == [f"{content}<|im_end|>" for content in contents]
    assert all(row.ids[end - 1] == 2 for _, end in row.spans)


def test_template_writes_bos_and_the_tokenizer_does_not_add_another() -> None:
    tokenizer = with_bos(closing=True)
    row = Encoder(tokenizer, max_length=64).encode(Example(prompt="Who?", completion="Me."))
    assert row.ids.tolist() == TOKENIZER(row.text, add_special_tokens=False)["input_ids"]


def test_prompts_only() -> None:
    encoder = Encoder(TOKENIZER, max_length=64, need_reply=False)
    row = encoder.encode(Example(prompt="Who?", completion="ignored"))
    assert row.text.endswith("<|im_start|>assistant\n") and row.spans == () and "ignored" not in row.text
    assert encoder.encode(Example(prompt="Who?")).ids.tolist() == row.ids.tolist()
    bare = Encoder(TOKENIZER, max_length=64, need_reply=False, chat_template=False)
    assert bare.encode(Example(prompt="Who?")).ids.tolist() == TOKENIZER("Who?")["input_ids"]


content = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(content, content), min_size=1, max_size=3))
def test_spans_cover_exactly_the_replies(turns: list[tuple[str, str]]) -> None:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = Encoder(TOKENIZER, max_length=4096).encode(Example(messages=messages))
    assert supervised(row) == [f"{answer}<|im_end|>" for _, answer in turns]
    assert TOKENIZER.decode(row.ids) == row.text


# ---- length and emptiness --------------------------------------------------------------------------------------------


def test_truncation_keeps_the_beginning() -> None:
    text = "The rain covered the old bridge. é😀 " * 5
    whole = Encoder(TOKENIZER, max_length=1000).encode(Example(text=text))
    row = Encoder(TOKENIZER, max_length=40).encode(Example(text=text))
    assert row.truncated and row.ids.tolist() == whole.ids[:40].tolist() and row.spans == ((1, 40),)
    assert text.startswith(row.text) and len(row.text) < len(text)


def test_truncation_that_only_costs_the_end_token_keeps_the_text() -> None:
    length = len(TOKENIZER("The rain left.")["input_ids"])
    row = Encoder(TOKENIZER, max_length=length).encode(Example(text="The rain left."))
    assert row.text == "The rain left." and row.truncated and row.spans == ((1, length),)


def test_spans_are_cut_with_the_row() -> None:
    messages = tiny.chats(1)[0]["messages"]
    whole = ENCODER.encode(Example(messages=messages))  # type: ignore[arg-type]
    length = whole.spans[0][0] + 3
    row = replace(ENCODER, max_length=length).encode(Example(messages=messages))  # type: ignore[arg-type]
    assert row.spans == ((whole.spans[0][0], length),)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_long_rows_are_refused(policy: Any) -> None:
    with pytest.raises(LongRow, match="f:9: the row has .* tokens; allowed are 4"):
        Encoder(TOKENIZER, max_length=4, long_rows=policy).encode(Example(text="The rain left us.", source="f:9"))


def test_a_row_cut_before_its_reply_is_refused() -> None:
    with pytest.raises(UnsupervisedRow, match="f:9: .*its reply begins beyond data.max_length"):
        Encoder(TOKENIZER, max_length=8).encode(Example(prompt="The rain left.", completion="Yes.", source="f:9"))


def test_a_chat_prompt_is_never_cut() -> None:
    encoder = Encoder(TOKENIZER, max_length=8, need_reply=False)
    with pytest.raises(LongRow, match="cannot be cut"):
        encoder.encode(Example(prompt="The rain left the old bridge."))
    assert len(encoder.encode(Example(text="The rain left the old bridge and the cook.")).ids) == 8


def test_single_token_without_end_token_teaches_nothing() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UnsupervisedRow, match="single token"):
        Encoder(tokenizer, max_length=8).encode(Example(text="a"))


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (Example(text=" \n", source="f:2"), EmptyRow, "f:2: the text is empty"),
        (Example(prompt="", completion="x", source="f:2"), EmptyRow, "the prompt is empty"),
        (Example(prompt="x", completion="", source="f:2"), EmptyRow, "the completion is empty"),
        (Example(prompt="x", source="f:2"), DataError, "no completion.*trace.mode.kind=generate"),
        (Example(source="f:2"), DataError, "neither text, nor prompt, nor messages"),
    ],
)
def test_rows_without_text(example: Example, error: type[DataError], message: str) -> None:
    with pytest.raises(error, match=message):
        ENCODER.encode(example)


def test_chat_row_without_template() -> None:
    bare = tiny.build_tokenizer(chat_template=None)
    with pytest.raises(TeacherError, match=r"no chat template"):
        Encoder(bare, max_length=64).encode(Example(prompt="Who?", completion="Me."))
    assert Encoder(bare, max_length=64, chat_template=False).encode(Example(prompt="Who?", completion="Me.")).spans


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def rebuilt(change: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a change to its JSON."""
    tokenizer = tiny.build_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    change(backend)
    tokenizer._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(backend))
    return tokenizer


def test_the_same_tokenizer_saved_in_other_ways(tmp_path: Path) -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    saved["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_hash(loaded) == tokenizer_hash(TOKENIZER)
    assert compare_tokenizers(TOKENIZER, loaded) == []
    assert template_hash(loaded) == template_hash(TOKENIZER) != ""
    row = Encoder(loaded, max_length=256).encode(Example(text="The rain covered the old bridge of stone."))
    assert len(row.ids) > 7


def test_differences_are_named() -> None:
    def swap(backend: dict[str, Any]) -> None:
        vocab = backend["model"]["vocab"]
        vocab["b"], vocab["c"] = vocab["c"], vocab["b"]

    other = rebuilt(swap)
    ids = TOKENIZER.get_vocab()
    found = compare_tokenizers(TOKENIZER, other)
    assert f"id {ids['b']} is 'b' in the teacher and 'c' in the student" in found
    assert tokenizer_hash(other) != tokenizer_hash(TOKENIZER)


def test_many_differences_are_counted() -> None:
    smaller = tiny.build_tokenizer(300)
    found = compare_tokenizers(TOKENIZER, smaller)
    assert f"{len(TOKENIZER) - len(smaller)} ids differ in all" in found
    assert any("absent in the student" in sentence for sentence in found)
    assert any(sentence.startswith("the merges differ from number") for sentence in found)
    assert len(found) == 5


def test_merges_specials_and_rules_are_compared() -> None:
    other = rebuilt(lambda backend: backend["model"]["merges"].reverse())
    assert compare_tokenizers(TOKENIZER, other)[0].startswith("the merges differ from number 0 on")

    other = tiny.build_tokenizer()
    other.eos_token = tiny.START
    assert compare_tokenizers(TOKENIZER, other) == []  # a base model and its instruction model: ids mean the same
    assert compare_roles(TOKENIZER, other) == [
        "the token for the end of a text is '<|im_end|>' in the teacher and '<|im_start|>' in the student"
    ]
    assert compare_roles(TOKENIZER, tiny.build_tokenizer()) == []
    other.eos_token = None
    assert "and none in the student" in compare_roles(TOKENIZER, other)[0]

    other = tiny.build_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    (sentence,) = compare_tokenizers(TOKENIZER, other)
    assert sentence.startswith("the pre-tokenizer differs: ") and "Digits" in sentence

    other = tiny.build_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    assert any(sentence.startswith("the normalizer differs") for sentence in compare_tokenizers(TOKENIZER, other))
    assert len({tokenizer_hash(one) for one in (TOKENIZER, other, with_bos())}) == 3


def test_flags_of_added_tokens_are_compared() -> None:
    ours, theirs = tiny.build_tokenizer(), tiny.build_tokenizer()
    ours.add_tokens([AddedToken("<tool>", special=True, normalized=False)])
    theirs.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    (sentence,) = compare_tokenizers(ours, theirs)
    assert sentence == "'<tool>' (id 384) is special in the teacher and an ordinary token in the student"


def test_a_step_that_does_nothing_is_no_difference() -> None:
    other = tiny.build_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Sequence([])  # type: ignore[assignment]
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)]
    )
    assert compare_tokenizers(TOKENIZER, other) == [] and tokenizer_hash(other) == tokenizer_hash(TOKENIZER)


def test_template_hash_of_no_template() -> None:
    assert template_hash(tiny.build_tokenizer(chat_template=None)) == ""


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}', '{"model": 3, "added_tokens": []}'])
def test_unusable_tokenizers(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(TeacherError, match=r"the tokenizer of .* cannot be opened .*Allowed are a hub id, or a folder"):
        load_tokenizer(str(tmp_path))


def test_missing_folder() -> None:
    with pytest.raises(TeacherError, match="nowhere/at-all"):
        load_tokenizer("nowhere/at-all")


# ---- replies ---------------------------------------------------------------------------------------------------------


def prompter(tokenizer, **settings) -> Encoder:
    return Encoder(tokenizer, max_length=64, need_reply=False, **settings)


def test_a_whole_reply_is_what_the_conversation_would_be(tiny_tokenizer):
    """Prompt and reply together are the tokens and spans of the same conversation read from data."""
    turns = [{"role": "user", "content": "name a bird"}, {"role": "assistant", "content": "a wren, or two"}]
    prompt = prompter(tiny_tokenizer).encode(Example(messages=turns[:1]))
    reply = prompter(tiny_tokenizer).encode_reply(prompt.text, "a wren, or two", chat=True, closed=True, source="r")
    whole = Encoder(tiny_tokenizer, max_length=64).encode(Example(messages=turns))
    (start, end) = reply.spans[0]
    assert reply.spans == whole.spans and reply.ids.tolist() == whole.ids[: len(reply.ids)].tolist()
    assert end == len(reply.ids) and tiny_tokenizer.decode(reply.ids[start:end]) == "a wren, or two<|im_end|>"
    assert reply.ids[:start].tolist() == prompt.ids.tolist()


def test_a_reply_that_was_cut_off_has_no_end(tiny_tokenizer):
    prompt = prompter(tiny_tokenizer).encode(Example(prompt="name a bird"))
    reply = prompter(tiny_tokenizer).encode_reply(prompt.text, "a wren, or", chat=True, closed=False, source="r")
    (start, end) = reply.spans[0]
    assert end == len(reply.ids) and tiny_tokenizer.decode(reply.ids[start:end]) == "a wren, or"


@pytest.mark.parametrize("closed", [True, False])
def test_a_reply_to_plain_text(tiny_tokenizer, closed):
    encoder = prompter(tiny_tokenizer, chat_template=False)
    reply = encoder.encode_reply("name a bird:", " wren", chat=False, closed=closed, source="r")
    (start, end) = reply.spans[0]
    assert tiny_tokenizer.decode(reply.ids[start:end]) == " wren" + ("<|im_end|>" if closed else "")
    assert reply.text == "name a bird: wren"


def test_a_reply_is_kept_word_for_word(tiny_tokenizer):
    """Also where a template would trim it, or take its thoughts away."""
    said = "\n <think>\nhm\n</think>\n\n yes  \n"
    encoder = prompter(tiny_tokenizer)
    prompt = encoder.encode(Example(prompt="?"))
    reply = encoder.encode_reply(prompt.text, said, chat=True, closed=True, source="r")
    assert tiny_tokenizer.decode(reply.ids).endswith("assistant\n" + said + "<|im_end|>")


@pytest.mark.parametrize(("said", "why"), [("  ", "reply is empty"), ("a<|im_end|>b", "control token")])
def test_replies_that_cannot_be_used(tiny_tokenizer, said, why):
    with pytest.raises(DataError, match=why):
        prompter(tiny_tokenizer).encode_reply("x", said, chat=True, closed=True, source="r")
