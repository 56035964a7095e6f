"""Folders of other settings: set aside, taken up again, never lost, wherever a kill falls."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.system.shelf import Shelf, mark, marked_key

KEYS = [f"{digit}" * 16 for digit in "abc"]


def shelf_of(folder: Path) -> Shelf:
    return Shelf(folder, marked_key, lambda path: (len(list(path.glob("work-*"))),))


def contents(home: Path) -> dict[str, list[str]]:
    """Whose work there is, in any folder."""
    found: dict[str, list[str]] = {}
    for path in home.iterdir():
        found.setdefault(marked_key(path) or "", []).extend(file.name for file in path.glob("work-*"))
    return {key: sorted(names) for key, names in found.items()}


class Killed(BaseException):
    pass


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["", "before", "after"])), max_size=12))
def test_whatever_is_visited_and_killed_the_work_goes_on_where_it_was(tmp_path_factory, visits):
    home = tmp_path_factory.mktemp("shelf")
    shelf, done = shelf_of(home / "train"), dict.fromkeys(KEYS, 0)
    rename = os.rename

    def cut(old, new):
        if kill == "after":
            rename(old, new)
        raise Killed

    for key, kill in visits:
        with pytest.MonkeyPatch.context() as patch:
            if kill:
                patch.setattr(os, "rename", cut)
            try:
                shelf.claim(key, lambda _: None)
            except Killed:
                continue
        mark(shelf.folder, key)
        assert len(list(shelf.folder.glob("work-*"))) == done[key], "what was there of these settings is taken up"
        (shelf.folder / f"work-{done[key]}").touch()
        done[key] += 1
    assert {key: len(names) for key, names in contents(home).items()} == {key: num for key, num in done.items() if num}


def folder_of(path: Path, key: str, work: int) -> None:
    mark(path, key)
    for number in range(work):
        (path / f"work-{number}").touch()


def test_of_two_folders_of_the_same_settings_the_further_one_is_used_and_both_are_kept(tmp_path):
    """As an earlier version left them: a finished one set aside, and a new beginning in its place."""
    said: list[str] = []
    shelf = shelf_of(tmp_path / "traces")
    folder_of(shelf.folder, KEYS[0], 1)
    folder_of(tmp_path / f"traces-{KEYS[0]}", KEYS[0], 8)
    shelf.claim(KEYS[1], said.append)
    mark(shelf.folder, KEYS[1])
    assert contents(tmp_path)[KEYS[0]] == sorted([*(f"work-{n}" for n in range(8)), "work-0"])
    shelf.claim(KEYS[0], said.append)
    assert len(list(shelf.folder.glob("work-*"))) == 8
    assert "taken up again as traces" in said[-1]
    shelf.claim(KEYS[0], said.append)
    assert len(said) == 3, "nothing moves twice"


def test_a_new_beginning_makes_room_for_what_is_further(tmp_path):
    shelf = shelf_of(tmp_path / "traces")
    folder_of(shelf.folder, KEYS[0], 1)
    folder_of(tmp_path / f"traces-{KEYS[0]}", KEYS[0], 8)
    shelf.claim(KEYS[0], lambda _: None)
    assert len(list(shelf.folder.glob("work-*"))) == 8
    assert [path.name for path in shelf.folders()] == ["traces", f"traces-{KEYS[0]}-2"]


def test_what_says_not_whose_it_is_is_kept_too(tmp_path):
    shelf = shelf_of(tmp_path / "train")
    shelf.folder.mkdir()
    shelf.claim(KEYS[0], lambda _: None)
    assert not shelf.folder.exists(), "an empty folder is nobody's"
    shelf.folder.mkdir()
    (shelf.folder / "fingerprint").write_text("../../elsewhere")
    shelf.claim(KEYS[0], lambda _: None)
    assert (tmp_path / "train-unknown" / "fingerprint").exists()
