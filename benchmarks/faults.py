"""Injected faults, a number of rounds of each kind: what was survived, healed, found, and what was not.

    python benchmarks/faults.py [--rounds 50] [--kind kill] [--out faults.md]

It is the soak of `tests/soak/` with a number of rounds instead of a time: every round is a whole run of a tiny model
that something is done to. Two processes of one thread each; half a minute a round on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are no part of the package

from tests.soak.soak import main

if __name__ == "__main__":
    print(f"# {machine()}")
    words = sys.argv[1:]
    sys.exit(main(words if "--rounds" in words else ["--rounds", "50", "--minutes", "1e9", *words]))
