"""What a model is, by its bytes."""

import json
import shutil

import pytest

from limbeck.models import identity
from limbeck.models.gguf_import import DEMO_SHA256
from limbeck.models.identity import folder_content, hub_commit, model_content
from limbeck.system.hashes import FileHashes


@pytest.fixture
def hashes(tmp_path):
    return FileHashes.open(tmp_path / "hashes.json")


def changed(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_folder_is_its_weights_configs_tokenizer_template_and_code(tiny_llama, tmp_path, hashes):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_llama, folder)
    before = model_content(str(folder), hashes)
    assert str(folder / "model.safetensors") in before
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "modeling_own.py"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" " if (folder / name).exists() else b"x")
        after = model_content(str(folder), hashes)
        assert changed(before, after) == {str(folder / name)}
        before = after


def test_what_is_said_about_a_model_is_no_part_of_it(tiny_llama, tmp_path, hashes):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_llama, folder)
    before = model_content(str(folder), hashes)
    (folder / "checkpoint-500").mkdir()
    for name in ("README.md", "limbeck.json", "MANIFEST.json", "trainer_state.json", "checkpoint-500/config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").touch()
    assert model_content(str(folder), hashes) == before


def test_a_file_and_the_demo_teacher(tmp_path, hashes):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    before = model_content(str(file), hashes)
    file.write_bytes(b"GGUG")
    assert changed(before, model_content(str(file), hashes)) == {str(file)}
    assert model_content("smollm2-135m", hashes) == {"smollm2-135m": DEMO_SHA256}


def test_a_hub_id_is_its_commit(tmp_path, hashes, monkeypatch):
    """Without the hub, that of the copy on this machine; without one, nothing can be told."""
    monkeypatch.setattr(identity, "HF_HUB_CACHE", str(tmp_path))
    assert model_content("some/model", hashes) == {} and hub_commit("no/hub/id", "model") is None
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0a1b")
    assert model_content("some/model", hashes) == {"some/model": "0a1b"}
    assert hub_commit("some/model", "dataset") is None


def test_every_file_below_a_folder(tmp_path, hashes):
    (tmp_path / "tasks" / "sub").mkdir(parents=True)
    (tmp_path / "tasks" / "sub" / "a.yaml").write_text(json.dumps(1))
    assert list(folder_content(str(tmp_path / "tasks"), hashes)) == [str(tmp_path / "tasks" / "sub" / "a.yaml")]
    assert folder_content(str(tmp_path / "none"), hashes) == {}
