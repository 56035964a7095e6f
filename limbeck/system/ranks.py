"""Ranks: which this process is of those that torchrun started. Nothing here needs torch."""

from __future__ import annotations

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """What torchrun says of this process: its number among `world`, its number on this machine, and how often all of
    them were started again."""

    rank: int
    world: int
    local_rank: int
    restarts: int


def launch() -> Launch | None:
    """None where no launcher started this process."""
    if "RANK" not in os.environ:
        return None
    rank, world, local_rank = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    return Launch(rank, world, local_rank, _number("TORCHELASTIC_RESTART_COUNT", 0))


def first_rank() -> bool:
    """Of the processes of one launch only the first prints, writes files and holds the run folder."""
    return _number("RANK", 0) == 0


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
