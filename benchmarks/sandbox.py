"""Verification of short programs in the sandbox: how many a minute.

    python benchmarks/sandbox.py [--programs 1000] [--mbpp FOLDER/mbpp/test.jsonl]

Programs are of a line or two with three assertions each, as in MBPP; with --mbpp the data set's own solutions and
tests. Beside it the bare interpreter (`python -I -S -c pass`), one after the other: what no sandbox can leave out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import machine

from limbeck.curate.verifiers import verify_all
from limbeck.recipe import UnitTests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--mbpp", type=Path)
    args = parser.parse_args()
    print(f"# {machine()}")
    pairs = mbpp(args.mbpp) if args.mbpp else made(args.programs)
    begun = time.perf_counter()
    found = verify_all(UnitTests(), pairs)
    seconds = time.perf_counter() - begun
    right = sum(verdict.ok is True for verdict in found)
    print(f"{len(pairs)} programs in {seconds:.1f} s, {len(pairs) / seconds:.0f} a second; {right} passed")
    begun = time.perf_counter()
    for _ in range(50):
        subprocess.run([os.path.realpath(sys.executable), "-I", "-S", "-c", "pass"], check=True)
    print(f"the bare interpreter, one at a time: {50 / (time.perf_counter() - begun):.0f} a second")
    for pair, verdict in zip(pairs, found, strict=True):
        if not verdict.ok and args.mbpp:
            print(f"# {verdict.reason}: {pair[1][:80]}")


def made(num: int) -> list[tuple[str, str]]:
    """Every second program is wrong."""
    return [
        (
            f"```python\ndef add(a, b):\n    return a + b + {n % 2} * {n}\n```",
            json.dumps([f"assert add({n}, {m}) == {n + m}" for m in range(3)]),
        )
        for n in range(1, num + 1)
    ]


def mbpp(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    setups = [[row["test_setup_code"]] if row["test_setup_code"] else [] for row in rows]
    return [(row["code"], json.dumps(setup + row["test_list"])) for row, setup in zip(rows, setups, strict=True)]


if __name__ == "__main__":
    main()
