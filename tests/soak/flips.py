"""A bit or a byte of any file of a finished run: whoever reads it, then the same command again."""

from __future__ import annotations

from random import Random

from limbeck.errors import LimbeckError
from tests.pipeline.flips import TOLD, draw_flip, kinds_of_files, read_all
from tests.soak.kinds import Kind, Outcome, bad
from tests.soak.workspace import Workspace


def flip(workspace: Workspace, rng: Random) -> Outcome:
    expected = read_all(workspace.finished(), workspace.base.straight)
    run = workspace.finished()
    names = rng.choice(list(kinds_of_files(run).values()))
    one = draw_flip(run, names, rng)
    one.apply(run)
    what, told = f"byte {one.at} of {one.name} becomes {one.byte}", False
    for reader, said in read_all(run, workspace.base.straight).items():
        found = isinstance(said, LimbeckError) or any(word in said for word in TOLD)
        if str(said) != str(expected[reader]) and not found:
            return bad(what, f"{reader} says something else, without a word")
        told = told or found
    ended = workspace.limbeck()
    if ended.wrong:
        return bad(what, ended.wrong)
    if ended.code:
        return Outcome("found", what) if "error: " in ended.said else bad(what, ended.tail)
    if one.name.endswith("metrics.jsonl") and told:
        return Outcome("found", what)  # numbers of steps that are not taken again
    problem = workspace.differs()
    if problem:
        return bad(what, problem)
    return Outcome("healed" if told or "made again" in ended.said else "survived", what)


KINDS = (Kind("flip", "a bit or a byte of a finished run's file is changed", flip),)
