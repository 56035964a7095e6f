"""One changed bit or byte in a finished run: found and told, healed, or without effect, whoever reads the file."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import LimbeckError
from limbeck.experts.finished_run import FinishedRun
from limbeck.pipeline.run import run_recipe
from limbeck.pipeline.show import show_run, show_trace
from limbeck.recipe import Recipe
from limbeck.report.page import run_report
from limbeck.text.tokenizer import load_tokenizer
from tests.pipeline.visits import state_of

SKIPPED = re.compile(r"\.lock|report\.html|.*/README\.md|hashes\.json")
"""Files that hold nothing, that are written anew whoever reads them, or that nothing reads."""

TOLD = ("is damaged", "could not be read", "damaged=('")


class Flip(NamedTuple):
    """A byte of a file, by its name in the run, and what it becomes."""

    name: str
    at: int
    byte: int

    def apply(self, run: Path) -> None:
        content = bytearray((run / self.name).read_bytes())
        content[self.at] = self.byte
        (run / self.name).write_bytes(content)


def kinds_of_files(run: Path) -> dict[str, list[str]]:
    """The files of a run by kind: names that differ in their numbers alone are of one kind."""
    found: dict[str, list[str]] = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if file.is_file() and file.stat().st_size and not SKIPPED.fullmatch(name):
            found.setdefault(re.sub(r"\d+", "N", name), []).append(name)
    return found


def draw_flip(run: Path, names: list[str], rng: random.Random) -> Flip:
    """A bit or a whole byte, in one of these files."""
    name = rng.choice(names)
    content = (run / name).read_bytes()
    at = rng.randrange(len(content))
    return Flip(name, at, content[at] ^ rng.choice([1 << rng.randrange(8), rng.randint(1, 255)]))


# ---- who reads -------------------------------------------------------------------------------------------------------


def page_of(run: Path) -> str:
    return run_report(run).read_text()


def finished(run: Path) -> Any:
    """What becomes of a run when an expert is made of it."""
    found = FinishedRun.open(run)
    lm = load_tokenizer(str(run / "student"))
    return json.dumps([found.card_scores("student"), [str(one) for one in found.heldout(lm)]], default=str)


READERS: dict[str, Callable[[Path], Any]] = {
    "report": page_of,
    "show run": lambda run: str(replace(show_run(run), bytes={})),
    "show traces": lambda run: str(show_trace(run, row=3)),
    "experts add": finished,
}


def read_all(run: Path, made: Path | None = None) -> dict[str, Any]:
    """What every reader says of a run that was made in the folder `made`; an error of ours is what it says, too."""
    said: dict[str, Any] = {}
    for name, read in READERS.items():
        try:
            said[name] = str(read(run)).replace(str(run), "RUN").replace(str(made or run), "RUN")
        except LimbeckError as error:
            said[name] = error
    return said


def check_flip(flip: Flip, recipe: Recipe, run: Path, copy: Path, expected: dict[str, Any]) -> str:
    """Apply a flip to a copy of a run, let everybody read it, and run the recipe again. `expected` is what `read_all`
    says of the run, and, under "state", what `state_of` does. Returns what became of it: "no effect", "found" (told by
    an error, and there to stay) or "healed". Raises AssertionError for anything else."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    flip.apply(copy)
    told = False
    for name, said in read_all(copy, run).items():
        same = said == expected[name]
        told = told or not same
        assert same or isinstance(said, LimbeckError) or any(word in said for word in TOLD), (flip, name, "silent")
    messages: list[str] = []
    with contextlib.suppress(LimbeckError):
        run_recipe(recipe, copy, estimate=False, on_message=messages.append)
        messages.append("finished")
    if "finished" not in messages:
        return "found"
    found = state_of(copy)
    differing = [name for name in {*found, *expected["state"]} if found.get(name) != expected["state"].get(name)]
    assert not differing, (flip, "silent", differing, messages)
    return "healed" if told or any("made again" in message for message in messages) else "no effect"
