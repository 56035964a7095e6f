"""Folders that say themselves whether they are whole; a manifest from elsewhere is not trusted."""

import json
import os

import pytest

from limbeck.system.atomic import atomic_dir, sha256_file, verify_dir
from limbeck.system.rundir import RunDir, StageRecord


@pytest.fixture
def folder(tmp_path):
    with atomic_dir(tmp_path / "whole") as tmp:
        (tmp / "sub").mkdir()
        (tmp / "a.txt").write_text("a")
        (tmp / "sub" / "b.txt").write_text("b")
    return tmp_path / "whole"


def rewrite(folder, change):
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    change(manifest)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_whole_folder(folder):
    assert verify_dir(folder) is None
    assert verify_dir(folder, alone=True) is None
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download").write_text("what a hub client leaves")
    assert verify_dir(folder, alone=True) is None


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../outside", "sub/../../outside", "a\\..\\b", "C:/x", "", "..", "sub/..", "a.txt\0"]
)
def test_names_that_lead_out_are_refused_and_not_read(folder, name):
    outside = folder.parent / "outside"
    outside.write_text("secret")
    entry = {"bytes": 6, "sha256": sha256_file(outside)}
    rewrite(folder, lambda manifest: manifest.update({name: entry}))
    assert "not a name inside the folder" in (verify_dir(folder) or "")


@pytest.mark.parametrize("where", ["a.txt", "sub"])
def test_links_are_refused_even_where_the_content_is_right(folder, where):
    moved = folder.parent / "moved"
    os.rename(folder / where, moved)
    (folder / where).symlink_to(moved)
    assert "is a link" in (verify_dir(folder) or "")


def test_what_is_no_plain_file_is_refused_and_not_waited_for(folder):
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    assert "not a plain file" in (verify_dir(folder) or "")


@pytest.mark.parametrize(
    "text", ["[]", "{}x", '{"a.txt": 3}', '{"a.txt": {"bytes": "x", "sha256": ""}}', '"a"', "[" * 100_000, "\udcff"]
)
def test_manifests_that_are_none(folder, text):
    (folder / "MANIFEST.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "not readable JSON" in (verify_dir(folder) or "")


def test_files_beside_the_manifest(folder):
    (folder / "sub" / "adapter_config.json").write_text("{}")
    assert verify_dir(folder) is None
    assert "not in the folder's MANIFEST.json" in (verify_dir(folder, alone=True) or "")
    (folder / "sub" / "adapter_config.json").unlink()
    (folder / "link").symlink_to("/etc")
    assert "is a link" in (verify_dir(folder, alone=True) or "")


def test_what_killed_writers_left_is_swept_when_a_run_is_opened(tmp_path):
    """In every room, those set aside too; what a stranger put there stays."""
    rooms = ["", "stages", "train/student", "train/student-0123456789abcdef/checkpoints", "evaluate", "traces-x"]
    for room in rooms:
        folder = tmp_path / room
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".summary.json.123.tmp").touch()
        (folder / ".artifact.a1_b2c3d.old" / "replaced").mkdir(parents=True)
        (folder / ".artifact.d4e5f6.tmp").mkdir()
    (tmp_path / ".gitignore").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".notes.1.tmp").touch()
    with RunDir.open(tmp_path):
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.name != ".lock"}
    put_back = {f"{room}/artifact".strip("/") for room in rooms}
    parents = {"stages", "train", "train/student", "train/student-0123456789abcdef", rooms[3], "evaluate", "traces-x"}
    assert found == put_back | parents | {".gitignore", "mine", "mine/.notes.1.tmp"}


def test_a_run_without_a_true_stage_has_no_summary(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with RunDir.open(tmp_path) as run:
        run.finish(StageRecord("train", "0" * 16, 1.0, 2, 3, "4"))
        run.forget("train")
        run.forget("train")
    assert run.record("train") is None and not (tmp_path / "summary.json").exists()
