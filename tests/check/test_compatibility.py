"""Context, layers, tokenizer and heads of the models are looked at before anything is run."""

from __future__ import annotations

import json
import shutil

import pytest

from limbeck.check.recipe import check_recipe
from tests import tiny
from tests.check.checking import problems


def test_context(recipe):
    assert problems(recipe.override("data.max_length=129"))["data.max_length"] == (
        "data.max_length allows rows up to 129 tokens, but the teacher reads at most 128. "
        "Set data.max_length to at most 128."
    )


def test_context_with_replies(chats):
    generate = chats.override("trace.mode={kind: generate, max_tokens: 32}")
    assert problems(generate) == {}
    found = problems(generate.override("data.max_length=100"))
    assert "Set data.max_length to at most 96." in found["data.max_length"]
    found = problems(generate.override("trace.mode.max_tokens=200"))
    assert "Lower trace.mode.max_tokens." in found["data.max_length"]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("{kind: prune, layers: 3}", "student.layers is 3, but the teacher has 3: nothing would be removed"),
        ("{kind: prune, keep: [0, 3, 7]}", "student.keep names the layers [3, 7], but the teacher's are 0 to 2."),
        ("{kind: prune, keep: [0, 1, 2]}", "student.keep keeps all 3 layers"),
    ],
)
def test_layers(recipe, student, message):
    found = check_recipe(recipe.override(f"student={student}"), estimate=False).problems
    assert len(found) == 1
    assert message in found[0].message


def test_the_same_tokenizer_under_other_heads(recipe, tiny_folder):
    padded = tiny_folder("llama", seed=1, vocab_size=tiny.VOCAB + 16)
    found = check_recipe(recipe.override(f"student={{kind: pretrained, path: {padded}}}"), estimate=False)
    assert found.problems == []
    assert "their heads are padded to 384 and 400 rows; both are cut to the 384 real tokens." in found.facts


def test_a_head_that_is_too_small(recipe, tiny_folder):
    small = tiny_folder("llama", seed=1, vocab_size=tiny.VOCAB - 16)
    found = problems(recipe.override(f"student={{kind: pretrained, path: {small}}}"))
    assert "a head of 368 rows for 384 tokens" in found["student.path"]


def test_another_tokenizer(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    tiny.build_tokenizer(300).save_pretrained(folder)
    found = problems(recipe.override(f"student={{kind: pretrained, path: {folder}}}"))
    assert "has another tokenizer than the teacher" in found["student.path"]
    assert "student.kind=prune or scratch" in found["student.path"]


def test_a_base_model_is_its_instruction_models_student(recipe, tiny_llama, tmp_path):
    """The commonest pair of all: ids mean the same, and another token ends."""
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    base = tiny.build_tokenizer(chat_template=None)
    base.eos_token = tiny.PAD
    base.save_pretrained(folder)
    found = check_recipe(recipe.override(f"student={{kind: pretrained, path: {folder}}}"), estimate=False)
    assert found.problems == []
    assert any("end of a text is '<|im_end|>' in the teacher and '<|pad|>' in the student" in it for it in found.facts)


def test_tokens_without_a_row_are_told_and_rows_with_one_refused(recipe, tiny_llama, tmp_path, text_jsonl):
    folder = shutil.copytree(tiny_llama, tmp_path / "grown")
    grown = tiny.build_tokenizer()
    grown.add_special_tokens({"additional_special_tokens": [tiny.START, "<extra>"]})
    grown.save_pretrained(folder)
    told = check_recipe(recipe.override(f"teacher.path={folder}"), estimate=False)
    assert told.problems == []
    assert "385 ids for a model of 384 rows: tokens were added without resizing it ('<extra>')" in " ".join(
        warning.message for warning in told.warnings
    )
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{row['text']} <extra>"} for row in tiny.rows(4)])
    source = json.dumps({"kind": "files", "path": str(rows), "text": "text"})
    found = problems(recipe.override(f"teacher.path={folder}").override(f"data.source={source}"))
    assert "has the token '<extra>' (id 384), but the model has 384 rows" in found["data.source"]


def test_another_template_is_a_fact(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    for changed, said in ((tiny.CHATML + "!", "stands against"), (tiny.CHATML + "{# the same #}", "say the same")):
        tiny.build_tokenizer(chat_template=changed).save_pretrained(folder)
        found = check_recipe(recipe.override(f"student={{kind: pretrained, path: {folder}}}"), estimate=False)
        assert found.problems == []
        assert any("their chat templates" in fact and said in fact for fact in found.facts)


def test_a_chat_needs_a_template(chats, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    tiny.build_tokenizer(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "has no chat template" in problems(chats.override(f"teacher.path={folder}"))["data.source"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("assistant\n' }}", "assistant\n<think>\n' }}"), "asks for a reply with '<think>'"),
    ],
)
def test_what_a_template_does_to_replies_is_told(chats, tiny_llama, tmp_path, changed, said):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    template = tiny.CHATML.replace(*changed)
    assert template != tiny.CHATML
    tiny.build_tokenizer(chat_template=template).save_pretrained(folder)
    plain, found = (check_recipe(each, estimate=False) for each in (chats, chats.override(f"teacher.path={folder}")))
    assert any(said in each for each in (*found.facts, *map(str, found.warnings)))
    assert not any(said in each for each in (*plain.facts, *map(str, plain.warnings)))


def test_plain_text_needs_none(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    tiny.build_tokenizer(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert problems(recipe.override(f"teacher.path={folder}")) == {}


def test_rows(recipe, tmp_path):
    assert "data.source" in problems(recipe.override("data.source.path=nowhere.jsonl"))
    assert "data.source" in problems(recipe.override("data.source.text=words"))
    (tmp_path / "empty.jsonl").write_text("")
    assert "data.source" in problems(recipe.override(f"data.source.path={tmp_path / 'empty.jsonl'}"))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    assert ":2" in problems(recipe.override(f"data.source.path={tmp_path / 'bad.jsonl'}"))["data.source"]


def test_long_rows(recipe):
    short = recipe.override("data.max_length=16")
    assert any(
        "16 tokens, 15 of them supervised (cut to data.max_length)." in fact
        for fact in check_recipe(short, estimate=False).facts
    )
    assert "allowed are 16" in problems(short.override("data.long_rows=stop"))["data.source"]
    assert problems(short.override("data.long_rows=skip")) == {}
