"""Two checkouts in turns: each piece of a benchmark of one commit against the same piece of another.

    git worktree add ../before COMMIT
    python benchmarks/pair.py ../before benchmarks/losses.py --group stored --only ours [--turns 5] [--starts 3]

Each checkout runs its own copy of the benchmark in a process of its own. Both set their work up once, and then wait:
every piece is run by one while the other sleeps, in random order, so that a machine that gets slower slows both.
Where memory lies is settled when a process starts, and can make the same code 5 % slower: hence several starts.
Ratios are of neighbours in time; the last column has the median of each start, which says how far to trust the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("benchmark")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3)
    args, rest = parser.parse_known_args()
    print(f"# {args.benchmark} {' '.join(rest)}: {args.starts} starts of {args.turns} turns, {os.cpu_count()} cores")
    print(f"{'':34}{'before ms':>11}{'now ms':>9}{'now / before':>14}  by start")
    starts = [start(args, rest) for _ in range(args.starts)]
    for name in starts[0]:
        print(line(name, [each[name] for each in starts]))


def start(args: argparse.Namespace, rest: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of both sides by piece, from two fresh processes."""
    sides = [Side(root, [args.benchmark, *rest]) for root in (args.before.resolve(), HERE.parents[1])]
    names = [name for name in sides[1].names if name in sides[0].names]
    pairs = {name: timed(sides, name, args.turns) for name in names}
    for side in sides:
        side.process.terminate()
    return pairs


class Side:
    """One checkout's benchmark, set up and waiting."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(HERE)!r}, run_name='worker')", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.names = self.answer()

    def run(self, name: str) -> float:
        assert self.process.stdin
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        assert self.process.stdout
        for text in self.process.stdout:
            if text.startswith("pair "):
                return json.loads(text[5:])
        raise SystemExit(f"the benchmark of {self.process.args} ended before its turn")


def timed(sides: list[Side], name: str, turns: int) -> list[tuple[float, float]]:
    pairs = []
    for _ in range(turns):
        seconds = {number: sides[number].run(name) for number in random.sample((0, 1), 2)}
        pairs.append((seconds[0], seconds[1]))
    return pairs


def line(name: str, starts: list[list[tuple[float, float]]]) -> str:
    pairs = [pair for start in starts for pair in start]
    before, now = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    each = ", ".join(f"{ratio(start):.3f}" for start in starts)
    return f"{name:34}{before:11.1f}{now:9.1f}{ratio(pairs):14.3f}  {each}"


def ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(now / before for before, now in pairs)


def worker() -> None:
    """Runs a benchmark of the folder it stands in, with `interleave` answering one line of names at a time."""
    sys.path.insert(0, "benchmarks")
    import common

    common.interleave = serve
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def serve(work: Mapping[str, Callable[[], object]], rounds: int) -> None:
    del rounds
    for each in work.values():
        each()
    print("pair", json.dumps(list(work)), flush=True)
    for name in sys.stdin:
        begun = time.perf_counter()
        own = work[name.strip()]()
        print("pair", own if isinstance(own, float) else time.perf_counter() - begun, flush=True)
    raise SystemExit


if __name__ == "worker":
    worker()
if __name__ == "__main__":
    main()
