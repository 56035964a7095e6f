"""Push and pull through `huggingface_hub` itself, in a process of its own, against a hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import ExpertError
from limbeck.experts import Registry
from limbeck.experts import hub as door
from limbeck.experts.integrity import FolderLimits
from limbeck.system.atomic import seal_dir
from tests.experts import hub_server
from tests.experts.conftest import ROWS, make_card

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload
TOKEN = "hf_" + "q7" * 17
REPO = "me/notes-expert"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.running(TOKEN) as hub:
        yield hub


@pytest.fixture
def reached(hub, monkeypatch):
    """The hub for this process: the client is told where it is, since it read its environment long ago."""
    make = door.HfApi
    monkeypatch.setattr(door, "HfApi", lambda **kwargs: make(endpoint=hub.url, token=TOKEN, **kwargs))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


def limbeck(hub, tmp_path, *words, token=TOKEN):
    """The command, as a user has it. (The loopback hub has no Xet storage: files take the LFS road.)"""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    env |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", "experts", *map(str, words)], env=env, capture_output=True, text=True
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def files_of(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


@pytest.mark.slow
def test_push_and_pull_carry_an_expert_byte_for_byte(hub, registry, model, tmp_path):
    expert = registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS, files={"replay.jsonl": ""})
    done = limbeck(hub, tmp_path, "push", registry.path, "notes", REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"pushed notes to {REPO} ({hub_server.COMMIT})\n"
    assert hub.files[REPO] == {".gitattributes": hub.files[REPO][".gitattributes"], **files_of(expert.path)}
    assert hub.blobs and hub.private[REPO] == "private"
    assert all(
        authorization == f"Bearer {TOKEN}" for _, path, authorization in hub.seen if not path.startswith("/lfs/")
    )

    other = tmp_path / "other"
    done = limbeck(hub, tmp_path, "pull", REPO, other, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "name": "notes",
        "version": "1.0.0",
        "path": str(other / "experts" / "notes" / "1.0.0"),
    }
    pulled = Registry(other).expert("notes")
    assert files_of(pulled.path) == files_of(expert.path) and pulled.card == expert.card
    assert sorted(os.listdir(other)) == [".lock", "experts"]

    again = limbeck(hub, tmp_path, "pull", REPO, other)
    assert again.returncode == 14 and "already, and a version is never changed" in again.stderr


def test_a_wrong_token_is_told_without_it(hub, registry, model, tmp_path):
    registry.add("notes", "1.0.0", make_card(), model)
    wrong = TOKEN[::-1]
    done = limbeck(hub, tmp_path, "push", registry.path, "notes", REPO, token=wrong)
    assert done.returncode == 14 and "set HF_TOKEN" in done.stderr
    assert wrong not in done.stdout + done.stderr


def test_a_new_version_replaces_the_files_of_the_one_before(reached, registry, model):
    door.push(registry.add("notes", "1.0.0", make_card(), model, files={"replay.jsonl": "{}"}), REPO)
    assert "replay.jsonl" in reached.files[REPO]
    newer = registry.add("notes", "1.1.0", make_card(), model)
    door.push(newer, REPO)
    assert set(reached.files[REPO]) - {".gitattributes"} == set(files_of(newer.path))


def test_a_repository_that_is_not_there_is_told(reached, tmp_path):
    with pytest.raises(ExpertError, match="pulling me/nothing failed"):
        door.pull("me/nothing", Registry(tmp_path / "r"))
    with pytest.raises(ExpertError, match="pulling a/b/c failed"):
        door.pull("a/b/c", Registry(tmp_path / "r"))
    reached.files["me/plain"] = {"config.json": b"{}"}
    with pytest.raises(ExpertError, match=r"me/plain was not added: it is no expert: it has no MANIFEST.json"):
        door.pull("me/plain", Registry(tmp_path / "r"))


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch, tmp_path):
    make = door.HfApi
    monkeypatch.setattr(door, "HfApi", lambda **kwargs: make(endpoint="http://127.0.0.1:1", token=TOKEN, **kwargs))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ExpertError, match="pulling me/x failed"):
        door.pull("me/x", Registry(tmp_path / "r"))


LISTED = ["../evil", "/etc/passwd", "a/../../evil", "model\\evil", "C:evil", "a\x1b[2Jb", ".ssh/id", "model/.x", "a\nb"]


@pytest.mark.parametrize("name", LISTED)
def test_hostile_names_are_refused_before_anything_is_fetched(name, reached, registry, model, tmp_path):
    door.push(registry.add("notes", "1.0.0", make_card(), model), REPO)
    reached.listed[name] = 10
    reached.seen.clear()
    with pytest.raises(ExpertError, match="was not added: the file name .* is not allowed"):
        door.pull(REPO, Registry(tmp_path / "r"))
    assert not [path for _, path, _ in reached.seen if "/resolve/" in path]
    assert not (tmp_path / "evil").exists()


def tampered(files, name, data):
    files[name] = data


HOSTILE = {
    "changed": (lambda files: tampered(files, "model/config.json", b"[]"), "damaged"),
    "cut": (lambda files: tampered(files, "model/config.json", b""), "has 0 bytes there instead of 2"),
    "missing": (lambda files: files.pop("model/config.json"), "has no bytes there"),
    "added": (lambda files: tampered(files, "model/extra.json", b"{}"), "is not in its MANIFEST.json"),
    "pickle": (lambda files: tampered(files, "model/pytorch_model.bin", b"x"), "may be a pickle"),
    "manifest": (
        lambda files: tampered(files, "MANIFEST.json", b'{"../x": {"bytes": 1, "sha256": ""}}'),
        "not allowed",
    ),
    "sizes": (lambda files: tampered(files, "MANIFEST.json", b'{"x": {"bytes": -1, "sha256": ""}}'), "does not say"),
    "depth": (lambda files: tampered(files, "MANIFEST.json", b"[" * 100_000), "not readable JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_repositories_are_refused_whole(kind, reached, registry, model, tmp_path):
    door.push(registry.add("notes", "1.0.0", make_card(), model), REPO)
    change, reason = HOSTILE[kind]
    change(reached.files[REPO])
    with pytest.raises(ExpertError, match=f"{REPO} was not added: .*{reason}"):
        door.pull(REPO, Registry(tmp_path / "r"))
    assert not (tmp_path / "r" / "experts" / "notes" / "1.0.0").exists()
    assert not list((tmp_path / "r").rglob("*.tmp"))


@pytest.mark.parametrize("limits", [FolderLimits(files=3), FolderLimits(bytes=1000)])
def test_more_than_the_limits_is_not_fetched(limits, reached, registry, model, tmp_path):
    door.push(registry.add("notes", "1.0.0", make_card(), model), REPO)
    reached.seen.clear()
    with pytest.raises(ExpertError, match="files of .* GiB are allowed"):
        door.pull(REPO, Registry(tmp_path / "r"), limits=limits)
    assert not [path for _, path, _ in reached.seen if "/resolve/" in path]


def test_a_card_may_not_name_a_place_outside(reached, registry, model, tmp_path):
    expert = registry.add("notes", "1.0.0", make_card(), model)
    card = json.loads((expert.path / "expert.json").read_text())
    (expert.path / "expert.json").write_text(json.dumps(card | {"name": "../../evil"}))
    seal_dir(expert.path)
    door.push(expert, REPO)
    with pytest.raises(ExpertError, match="'../../evil' is no name of an expert"):
        door.pull(REPO, Registry(tmp_path / "r"))
