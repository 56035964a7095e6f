"""What `check` finds out about models and rows before anything is run."""

import json
import shutil

import pytest

from limbeck.check import recipe as check
from limbeck.check.recipe import check_recipe
from limbeck.recipe import Recipe
from tests import tiny
from tests.recipes import tiny_recipe


@pytest.fixture
def recipe(tiny_llama, text_jsonl) -> Recipe:
    source = json.dumps({"kind": "files", "path": str(text_jsonl), "text": "text"})
    return tiny_recipe(f"teacher.path={tiny_llama}", f"data.source={source}", "data.max_length=64")


@pytest.fixture
def chats(recipe, chat_jsonl) -> Recipe:
    source = json.dumps({"kind": "files", "path": str(chat_jsonl), "messages": "messages"})
    return recipe.override(f"data.source={source}")


def problems(recipe: Recipe) -> dict[str, str]:
    return {found.where: found.message for found in check_recipe(recipe, estimate=False).problems}


def test_a_sound_recipe(recipe):
    found = check_recipe(recipe, estimate=False)
    assert found.problems == []
    assert "teacher: context of 128 tokens; rows have at most 64." in found.facts
    assert any("text.jsonl" in fact and "supervised" in fact for fact in found.facts)
    assert found.estimate == {}


def test_chats(chats):
    assert problems(chats) == {}


def test_static_problems_are_among_them(recipe):
    assert "student" in problems(recipe.override("student.keep=[0]"))


def test_the_harness_needs_its_package(recipe, monkeypatch):
    asked = recipe.override("evaluate.harness.tasks=[arc_easy]")
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert "limbeck[eval]" in problems(asked)["evaluate.harness"]
    assert "evaluate.harness" not in problems(recipe)


def test_missing_teacher(recipe, tmp_path):
    found = problems(recipe.override(f"teacher.path={tmp_path / 'nowhere'}"))
    assert "nowhere" in found["teacher.path"]


def test_damaged_config(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    (folder / "config.json").write_text("{")
    assert "teacher.path" in problems(recipe.override(f"teacher.path={folder}"))


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


def test_another_template_is_a_fact(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    for changed, said in ((tiny.CHATML + "!", "stands against"), (tiny.CHATML + "{# the same #}", "say the same")):
        tiny.build_tokenizer(chat_template=changed).save_pretrained(folder)
        found = check_recipe(recipe.override(f"student={{kind: pretrained, path: {folder}}}"), estimate=False)
        assert found.problems == []
        assert any("their chat templates" in fact and said in fact for fact in found.facts)


def test_rows(recipe, tmp_path):
    assert "data.source" in problems(recipe.override("data.source.path=nowhere.jsonl"))
    assert "data.source" in problems(recipe.override("data.source.text=words"))
    (tmp_path / "empty.jsonl").write_text("")
    assert "data.source" in problems(recipe.override(f"data.source.path={tmp_path / 'empty.jsonl'}"))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    assert ":2" in problems(recipe.override(f"data.source.path={tmp_path / 'bad.jsonl'}"))["data.source"]


def test_the_estimate_sees_all_rows(recipe, monkeypatch):
    seen = []

    def estimate_stages(asked, teacher, rows):
        seen.append((asked, teacher.vocab, len(rows)))
        return {"label": {"seconds": 1.0, "peak_bytes": 2, "disk_bytes": 3}}

    monkeypatch.setattr(check, "estimate_stages", estimate_stages)
    found = check_recipe(recipe)
    assert found.problems == []
    assert found.estimate["label"]["seconds"] == 1.0
    assert seen == [(recipe, 384, 64)]
    assert check_recipe(recipe.override("student.layers=9")).estimate == {}, "not with problems"


def test_more_disk_than_there_is(recipe, monkeypatch):
    cost = {"seconds": 1.0, "peak_bytes": 2**60, "disk_bytes": 2**60}
    monkeypatch.setattr(check, "estimate_stages", lambda *_: {"label": cost})
    found = check_recipe(recipe)
    assert [item.where for item in found.problems] == ["trace.target"]
    assert "Free some space" in found.problems[0].message
    assert any("activation_checkpointing=true" in fact for fact in found.facts)


def test_long_rows(recipe):
    short = recipe.override("data.max_length=16")
    assert any(
        "16 tokens, 15 of them supervised (cut to data.max_length)." in fact
        for fact in check_recipe(short, estimate=False).facts
    )
    assert "allowed are 16" in problems(short.override("data.long_rows=stop"))["data.source"]
    assert problems(short.override("data.long_rows=skip")) == {}
