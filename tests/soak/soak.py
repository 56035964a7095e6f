"""Random faults for as long as one likes: rounds of every kind in turn, a table at the end.

    python -m tests.soak [--minutes 60] [--workers 2] [--out soak.md]
    python -m tests.soak --kind kill --seed 417          # one round again

A round is one kind of fault, with choices drawn from its seed, on a recipe drawn from it as well. What is BAD is
printed at once, with the command that does it again.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests import tiny
from tests.soak import disks, flips, kills, memory, ranks
from tests.soak.kinds import VERDICTS, Kind, Outcome, bad
from tests.soak.workspace import RECIPES, Base, Workspace

KINDS: tuple[Kind, ...] = (*kills.KINDS, *disks.KINDS, *memory.KINDS, *ranks.KINDS, *flips.KINDS)
MOST_NOTE = 1500


class Round(NamedTuple):
    kind: Kind
    seed: int
    outcome: Outcome
    seconds: float

    @property
    def line(self) -> str:
        again = f"python -m tests.soak --kind {self.kind.name!r} --seed {self.seed}"
        note = self.outcome.note[-MOST_NOTE:]
        return f"{self.outcome.verdict:<8} {self.kind.name}, {self.seconds:.1f} s: {note}\n         {again}"


def make_bases(folder: Path, names: Iterable[str] = RECIPES) -> list[Base]:
    """An undisturbed run of every recipe."""
    teacher = tiny.save_folder(folder / "llama")
    return [Base.make(name, folder / name, teacher) for name in names]


def do_round(kind: Kind, seed: int, bases: Sequence[Base], folder: Path) -> Round:
    rng, begun = Random(f"{kind.name}-{seed}"), time.monotonic()
    base = rng.choice(list(bases))
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        outcome = kind.fault(Workspace(base, own), rng)
    except Exception:
        outcome = bad("the harness itself", traceback.format_exc())
    shutil.rmtree(own, ignore_errors=True)
    outcome = Outcome(outcome.verdict, f"{base.name}: {outcome.note}")
    return Round(kind, seed, outcome, time.monotonic() - begun)


def rounds(kinds: Sequence[Kind], seeds: Iterable[int], until: float, folder: Path, workers: int) -> Iterator[Round]:
    """Every kind with every seed, in turn, until the clock says `until`; as they end."""
    bases = make_bases(folder)
    todo = ((kind, seed) for seed in seeds for kind in kinds)
    with ThreadPoolExecutor(workers) as pool:
        under_way: set[Future[Round]] = set()
        while True:
            while len(under_way) < workers and time.monotonic() < until and (one := next(todo, None)):
                under_way.add(pool.submit(do_round, *one, bases, folder))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)


def table(done: Sequence[Round]) -> str:
    """Markdown: a line for each kind."""
    lines = [f"| fault | what is done | rounds | {' | '.join(VERDICTS)} |", "|---|---|---:|" + "---:|" * len(VERDICTS)]
    kinds = {each.kind.name: each.kind for each in done}
    for name, kind in kinds.items():
        found = Counter(each.outcome.verdict for each in done if each.kind.name == name)
        counts = " | ".join(str(found[verdict]) for verdict in VERDICTS)
        lines.append(f"| {name} | {kind.says} | {found.total()} | {counts} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, help="as many of each kind, and no longer")
    parser.add_argument("--seed", type=int, help="one round with this seed (default: 0, 1, 2 ...)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", action="append", choices=[kind.name for kind in KINDS], help="only these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table and every round's line here as well")
    args = parser.parse_args(words)
    kinds = [kind for kind in KINDS if args.kind is None or kind.name in args.kind]
    seeds: Iterable[int] = itertools.count(args.first)
    if args.seed is not None:
        seeds = [args.seed]
    elif args.rounds is not None:
        seeds = range(args.first, args.first + args.rounds)
    until = time.monotonic() + 60.0 * args.minutes
    done: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for each in rounds(kinds, seeds, until, Path(folder), args.workers):
            done.append(each)
            if each.outcome.verdict == "BAD" or args.seed is not None:
                print(each.line, flush=True)
    text = table(done)
    print(text)
    if args.out:
        args.out.write_text(text + "\n\n```\n" + "\n".join(each.line for each in done) + "\n```\n")
    return int(any(each.outcome.verdict == "BAD" for each in done))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(main())
