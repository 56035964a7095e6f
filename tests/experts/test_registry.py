"""The registry: whole versions or none, whoever is killed and whoever comes second; damage is named and stays alone."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from limbeck.errors import BudgetError, ExpertError
from limbeck.experts import Registry
from limbeck.experts import registry as module
from tests.experts.conftest import ROWS, make_card
from tests.models.strangers import INDICES

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.experts.conftest"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_added_is_read_back(registry, model):
    added = registry.add("notes", "1.0.0", make_card(parameters=7), model, prompts=ROWS, files={"replay.jsonl": ""})
    assert registry.experts() == [added] == [Registry(registry.path).expert("notes")]
    assert registry.damaged() == {}
    assert added.path == registry.path / "experts" / "notes" / "1.0.0"
    assert added.card == make_card(parameters=7)
    assert tuple(added.prompts()) == ROWS
    assert files_of(added.model_path) == files_of(model)
    manifest = json.loads((added.path / "MANIFEST.json").read_text())
    assert set(manifest) == set(files_of(added.path)) - {"MANIFEST.json"}
    assert "model/MANIFEST.json" in manifest and "model/inner/more.txt" in manifest
    assert not [path for path in registry.path.rglob(".*") if path.name != ".lock"]


def test_the_newest_version_speaks_for_a_name(registry, model):
    for version in ("1.10.0", "1.9.0", "2.0.0-rc.1"):
        registry.add("notes", version, make_card(), model)
    registry.add("code", "0.1.0", make_card("code"), model)
    assert [(one.name, one.version) for one in registry.experts()] == [("code", "0.1.0"), ("notes", "2.0.0-rc.1")]
    assert len(registry.experts(every=True)) == 4
    assert registry.versions("notes") == ["1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert registry.expert("notes", "1.9.0").version == "1.9.0"


def test_a_version_is_never_replaced(registry, model):
    before = files_of(registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS).path)
    with pytest.raises(ExpertError, match=r"in .* already, and a version is never changed.*experts remove .* notes"):
        registry.add("notes", "1.0.0", make_card("other"), model)
    assert files_of(registry.expert("notes").path) == before


def test_what_is_missing_is_named(registry, model):
    with pytest.raises(ExpertError, match="is no registry"):
        registry.experts()
    registry.add("notes", "1.0.0", make_card(), model)
    with pytest.raises(ExpertError, match="has no expert 'code'; there are: notes"):
        registry.expert("code")
    with pytest.raises(ExpertError, match=r"has no expert notes 2\.0\.0; its versions there: 1\.0\.0"):
        registry.expert("notes", "2.0.0")
    for name in ("../notes", "notes/1.0.0", ".."):
        with pytest.raises(ExpertError, match="is no name"):
            registry.expert(name)


def test_remove_takes_one_version_and_refuses_what_is_not_there(registry, model):
    registry.add("notes", "1.0.0", make_card(), model)
    registry.add("notes", "1.1.0", make_card(), model)
    registry.remove("notes", "1.1.0")
    assert registry.expert("notes").version == "1.0.0"
    with pytest.raises(ExpertError, match=r"has no expert notes 1\.1\.0 to remove; its versions: 1\.0\.0"):
        registry.remove("notes", "1.1.0")
    with pytest.raises(ExpertError, match="is no name"):
        registry.remove("../experts/notes", "1.0.0")
    registry.remove("notes", "1.0.0")
    assert registry.experts() == [] and registry.names() == []
    registry.add("notes", "1.0.0", make_card(), model)  # the name is free again
    assert (model / "model.safetensors").exists()


# ---- damage ----------------------------------------------------------------------------------------------------------


TEXT_PICKLE = b"cos\nsystem\n(S'true'\ntR."
BINARY_PICKLE = b"}q\x00cos\ngetcwd\nq\x01)Rq\x02" + b"and more"
"""What protocols 0 and 1 write for a call; the second is cut off."""


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # it may be a link to the artifact
    file.write_bytes(data)


def link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/hostname")


DAMAGE = {
    "a bit": (lambda folder: flip(folder / "model/model.safetensors"), "damaged"),
    "cut": (lambda folder: os.truncate(folder / "prompts.jsonl", 5), "bytes instead of"),
    "missing": (lambda folder: (folder / "model/config.json").unlink(), "model/config.json is missing"),
    "added": (lambda folder: (folder / "model/more.txt").write_text("x"), "not in its MANIFEST.json"),
    "link": (lambda folder: link(folder / "model/config.json"), "is a link"),
    "fifo": (lambda folder: os.mkfifo(folder / "pipe"), "neither a file nor a folder"),
    "pickle": (lambda folder: (folder / "model/pytorch_model.bin").write_bytes(b"x"), "may be a pickle"),
    "hidden pickle": (lambda folder: (folder / "model/notes.txt").write_bytes(b"\x80\x04N."), "begins as a pickle"),
    "a pickle of text": (lambda folder: (folder / "model/notes.txt").write_bytes(TEXT_PICKLE), "begins as a pickle"),
    "a pickle without version": (
        lambda folder: (folder / "model/vocab").write_bytes(BINARY_PICKLE),
        "begins as a pickle",
    ),
    "archive": (lambda folder: (folder / "model/vocab").write_bytes(b"PK\x03\x04"), "begins as a pickle or an arch"),
    "no manifest": (lambda folder: (folder / "MANIFEST.json").unlink(), "has no MANIFEST.json"),
    "bad manifest": (lambda folder: (folder / "MANIFEST.json").write_text("[" * 100_000), "not readable JSON"),
    "empty manifest": (lambda folder: (folder / "MANIFEST.json").write_text("{}"), "not in its MANIFEST.json"),
    "no card": (lambda folder: (folder / "expert.json").unlink(), "expert.json is missing"),
    "emptied": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "has no MANIFEST.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_expert_is_refused_alone(kind, registry, model):
    good = registry.add("code", "1.0.0", make_card("code"), model)
    bad = registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS)
    assert len(registry.experts()) == 2
    damage, reason = DAMAGE[kind]
    damage(bad.path)
    assert registry.experts() == [good]
    assert list(registry.damaged()) == ["notes/1.0.0"]
    assert reason in registry.damaged()["notes/1.0.0"]
    for version in (None, "1.0.0"):
        with pytest.raises(ExpertError, match=f"notes 1.0.0 is damaged: .*{reason}.*experts remove .* notes"):
            registry.expert("notes", version)
    registry.remove("notes", "1.0.0")
    assert registry.damaged() == {} and registry.experts() == [good]


def test_a_damaged_newest_version_leaves_the_one_before(registry, model):
    registry.add("notes", "1.0.0", make_card(), model)
    flip(registry.add("notes", "1.1.0", make_card(), model).path / "README.md")
    assert [one.version for one in registry.experts()] == ["1.0.0"]
    assert registry.expert("notes").version == "1.0.0" and "notes/1.1.0" in registry.damaged()


def test_a_folder_under_another_name_is_not_that_expert(registry, model):
    path = registry.add("notes", "1.0.0", make_card(), model).path
    shutil.copytree(path, path.with_name("1.0.1"))
    assert "its card is that of 'notes' '1.0.0'" in registry.damaged()["notes/1.0.1"]


def test_links_in_the_place_of_experts_are_not_followed(registry, model, tmp_path):
    path = registry.add("notes", "1.0.0", make_card(), model).path
    (registry.path / "experts" / "alias").symlink_to(path.parent)
    path.with_name("1.0.1").symlink_to(path)
    assert [one.name for one in registry.experts(every=True)] == ["notes"]
    assert set(registry.damaged()) == {"alias", "notes/1.0.1"}
    for name, version in (("alias", "1.0.0"), ("notes", "1.0.1")):
        with pytest.raises(ExpertError, match="to remove"):
            registry.remove(name, version)
    with pytest.raises(ExpertError, match="is a link"):
        registry.add("alias", "2.0.0", make_card(), model)


CARDS = {
    "schema": ({"schema": 9}, "has schema 9"),
    "scope": ({"scope": "all"}, "scope: "),
    "scores": ({"scores": {"student": {"kl": 0.1}}}, "scores.student.kl"),
    "number": ({"parameters": "many"}, "parameters: "),
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_that_is_none_is_refused(kind, registry, model):
    path = registry.add("notes", "1.0.0", make_card(), model).path
    changes, reason = CARDS[kind]
    card = json.loads((path / "expert.json").read_text())
    (path / "expert.json").write_text(json.dumps(card | changes))
    (path / "MANIFEST.json").unlink()
    module.seal_dir(path)
    assert reason in registry.damaged()["notes/1.0.0"]


@pytest.mark.parametrize("text", ["NaN", "[" * 100_000, "{", '"x"', '{"schema": 1}', "\udcff"])
def test_json_that_is_no_card_is_refused(text, registry, model):
    path = registry.add("notes", "1.0.0", make_card(), model).path
    (path / "expert.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    module.seal_dir(path)
    assert "expert.json" in registry.damaged()["notes/1.0.0"]


def test_a_file_is_hashed_again_only_when_it_changed(registry, model, monkeypatch):
    registry.add("notes", "1.0.0", make_card(), model)
    hashed = []
    real = module.sealed.sha256_file
    monkeypatch.setattr(module.sealed, "sha256_file", lambda file: (hashed.append(file.name), real(file))[1])
    registry.experts()
    assert hashed == []
    path = registry.expert("notes").path / "model" / "config.json"
    os.utime(path, ns=(1, 1))
    registry.experts()
    assert hashed == ["config.json"]


# ---- what may not be added -------------------------------------------------------------------------------------------


def test_unsafe_artifacts_are_not_added(registry, model):
    (model / "link").symlink_to("/etc/hostname")
    with pytest.raises(ExpertError, match="'link' is a link"):
        registry.add("notes", "1.0.0", make_card(), model)
    (model / "link").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ExpertError, match="may be a pickle"):
        registry.add("notes", "1.0.0", make_card(), model)
    assert not registry.path.exists()


@pytest.mark.parametrize("file", ["../evil", "/tmp/evil", "a\\b", "a\x1b[31m", "", "a/../b"])
def test_names_of_further_files_stay_inside(file, registry, model):
    with pytest.raises(ExpertError, match="is not allowed in an expert"):
        registry.add("notes", "1.0.0", make_card(), model, files={file: "x"})
    assert registry.experts() == []
    assert not (registry.path / "experts" / "notes" / "1.0.0").exists()


def test_a_full_disk_leaves_nothing(registry, model, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_link", full)
    with pytest.raises((BudgetError, shutil.Error)):
        registry.add("notes", "1.0.0", make_card(), model)
    assert registry.experts() == []


def test_a_folder_that_cannot_be_written_is_told(registry, model, monkeypatch):
    registry.add("notes", "1.0.0", make_card(), model)

    def refused(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(module.tempfile, "mkdtemp", refused)
    with pytest.raises(ExpertError, match="cannot be written"):
        registry.add("notes", "1.1.0", make_card(), model)


@pytest.mark.parametrize("kind", INDICES)
def test_weights_outside_of_the_folder_are_refused(kind, registry, model):
    """By the registry itself: before anything of the model is opened, and whether it is added, adopted or found."""
    (model / "model.safetensors").rename(model.parent / "outside.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(INDICES[kind]))
    with pytest.raises(ExpertError, match="is not opened"):
        registry.add("notes", "1.0.0", make_card(), model)
    (model / "model.safetensors.index.json").unlink()
    path = registry.add("notes", "1.0.0", make_card(), model).path
    (path / "model" / "model.safetensors.index.json").write_text(json.dumps(INDICES[kind]))
    module.seal_dir(path)
    with pytest.raises(ExpertError, match="is not opened"):
        Registry(registry.path.parent / "other").adopt(path)
    assert "is not opened" in registry.damaged()["notes/1.0.0"]


def test_text_is_no_pickle(registry, model):
    texts = [
        "# A page\n",
        "I am here\n.",
        "cat\ndog\n(",
        "S'abc'\n",
        "Nothing.\n" * 1000,
        "{}",
        '["a"]',
        "(a)\n",
        "",
        "0",
        "-",
    ]
    for number, text in enumerate(texts):
        (model / f"text{number}").write_text(text)
    registry.add("notes", "1.0.0", make_card(), model)
    assert len(registry.experts()) == 1


def test_files_that_are_read_whole_are_bounded(registry, model):
    for file, reason in (("expert.json", "at most"), ("MANIFEST.json", "at most")):
        path = registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS).path
        os.truncate(path / file, 2**33)  # without taking room on the disk
        if file != "MANIFEST.json":
            manifest = json.loads((path / "MANIFEST.json").read_text())
            manifest[file]["bytes"] = 2**33
            (path / "MANIFEST.json").write_text(json.dumps(manifest))
            registry._seen[path / file] = (module.sealed.stamp_of(path / file), manifest[file]["sha256"])
        assert reason in registry.damaged()["notes/1.0.0"]
        registry.remove("notes", "1.0.0")


def test_a_long_line_is_not_read_whole(registry, model):
    path = registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS).path
    expert = registry.expert("notes")
    os.truncate(path / "prompts.jsonl", 2**33)
    with pytest.raises(ExpertError, match=r"prompts\.jsonl, line 3 has .* at most"):
        list(expert.prompts())


def test_check_notices_what_changed_since(registry, model):
    expert = registry.add("notes", "1.0.0", make_card(), model)
    registry.check(expert)
    flip(expert.model_path / "model.safetensors")
    with pytest.raises(ExpertError, match="model/model.safetensors is damaged"):
        registry.check(expert)


# ---- killed, and not alone -------------------------------------------------------------------------------------------


def killed_at(count: int, verb: str, path: Path, model: Path) -> None:
    """Dies by SIGKILL at the `count`-th call that changes the file system."""
    seen = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "link", "mkdir", "unlink", "rmdir", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
    shutil.rmtree = counted(shutil.rmtree)
    registry = Registry(path)
    if verb == "add":
        registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS)
    else:
        registry.remove("notes", "1.0.0")
    os._exit(0)


def in_process(work, *args) -> int:
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
def test_add_killed_at_any_moment_leaves_all_or_nothing(registry, model, tmp_path):
    whole = files_of(Registry(tmp_path / "whole").add("notes", "1.0.0", make_card(), model, prompts=ROWS).path)
    registry.add("code", "1.0.0", make_card("code"), model)
    there = []
    for count in range(1, 100):
        code = in_process(killed_at, count, "add", registry.path, model)
        fresh = Registry(registry.path)
        assert fresh.damaged() == {}, f"killed at {count}"
        names = [expert.name for expert in fresh.experts()]
        assert names in (["code"], ["code", "notes"])
        there.append("notes" in names)
        if there[-1]:
            assert files_of(fresh.expert("notes").path) == whole
            fresh.remove("notes", "1.0.0")
        else:  # the next writer is not in the way of what was left
            fresh.add("notes", "1.0.0", make_card(), model, prompts=ROWS)
            fresh.remove("notes", "1.0.0")
        home = registry.path / "experts" / "notes"
        assert not home.exists() or not os.listdir(home), f"killed at {count}"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0 and there[0] is False and sum(there) >= 2 and len(there) > 15


@pytest.mark.slow
def test_remove_killed_at_any_moment_leaves_all_or_nothing(registry, model):
    for count in range(1, 60):
        registry.add("notes", "1.0.0", make_card(), model, prompts=ROWS)
        code = in_process(killed_at, count, "remove", registry.path, model)
        fresh = Registry(registry.path)
        assert fresh.damaged() == {}, f"killed at {count}"
        if fresh.names():
            fresh.remove("notes", "1.0.0")
        if code == 0:
            break
    assert code == 0 and count > 3


def racer(path: Path, model: Path, number: int, start, results) -> None:
    start.wait()
    try:
        Registry(path).add("notes", "1.0.0", make_card(parameters=number), model, prompts=ROWS)
        results.put((number, "added"))
    except ExpertError as error:
        results.put((number, str(error)))


@pytest.mark.slow
def test_of_two_processes_one_adds_and_the_other_is_told(registry, model):
    version = "1.0.0"
    for _ in range(5):
        start, results = CONTEXT.Barrier(2), CONTEXT.Queue()
        racers = [CONTEXT.Process(target=racer, args=(registry.path, model, n, start, results)) for n in (1, 2)]
        for process in racers:
            process.start()
        outcomes = dict(results.get(timeout=60) for _ in racers)
        for process in racers:
            process.join(60)
        winner = [number for number, said in outcomes.items() if said == "added"]
        assert len(winner) == 1, outcomes
        assert "already" in outcomes[3 - winner[0]]
        expert = Registry(registry.path).expert("notes", version)
        assert expert.card.parameters == winner[0] and Registry(registry.path).damaged() == {}
        registry.remove("notes", version)


def test_a_writer_at_work_is_not_swept_away(registry, model):
    def slow_writer():
        with registry._new("notes", "1.0.0") as tmp:
            (tmp / "half").write_text("x")
            registry.add("notes", "1.1.0", make_card(), model)
            assert (tmp / "half").exists()
            registry.add("notes", "1.0.0", make_card(), model)  # the first to finish wins

    with pytest.raises(ExpertError, match="already"):
        slow_writer()
    assert registry.versions("notes") == ["1.0.0", "1.1.0"] and registry.damaged() == {}
