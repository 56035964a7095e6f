"""The first rows are read and encoded as a run does it."""

import shutil

from limbeck.check.recipe import check_recipe
from tests import tiny
from tests.check.checking import problems


def test_a_chat_needs_a_template(chats, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    tiny.build_tokenizer(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "has no chat template" in problems(chats.override(f"teacher.path={folder}"))["data.source"]


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
