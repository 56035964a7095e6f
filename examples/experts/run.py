"""Three experts from one teacher, a router, and what they are worth together. `make experts` runs it.

    python examples/experts/run.py [--out runs/experts]

Distils SmolLM2-135M-Instruct into a code, a medical and a reasoning expert of 20 of its 30 layers, each with its
hard-label twin, and into two models for everything: one of an expert's size, one larger. Scores every model in every
domain, puts the experts into a registry, fits the router, and prints the tables of docs/lab/experts-example.md. What is
done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cross import cross_evaluate
from data import DOMAINS, write_data
from table import markdown

from limbeck.system.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPES = Path(__file__).parents[2] / "recipes" / "experts"
MIXED = ("generalist", "midsize")
ROWS = 900


def limbeck(*words: str) -> None:
    """A command of Limbeck in a process of its own. Exits with it when it fails."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "limbeck", *words], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"limbeck {' '.join(words)} ended with {done.returncode}; run the same command again to go on.")
    print(f"# limbeck {' '.join(words[:2])}: {time.monotonic() - begun:.0f} s", flush=True)


def distil(out: Path) -> None:
    """A run of every recipe."""
    for name in (*DOMAINS, *MIXED):
        if not (out / name / "report.html").exists():
            questions = out / "data" / "questions"
            source = questions / f"{name}.jsonl" if name in DOMAINS else questions
            limbeck("run", str(RECIPES / f"{name}.yaml"), f"data.source.path={source}", "--run-dir", str(out / name))


def register(out: Path, registry: Path) -> None:
    """Each domain's student as an expert, and the two for everything, which the router only compares with."""
    for name in (*DOMAINS, *MIXED):
        if not (registry / "experts" / name).exists():
            words = ["experts", "add", str(out / name), str(registry), "--name", name, "--domain", name]
            limbeck(*words, "--languages", "en")


def route(out: Path, registry: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Fit the router; how well it does is measured on held-out questions, answered by every model, and on questions
    that belong to none."""
    cross = registry / "router" / "cross.jsonl"
    cross.parent.mkdir(parents=True, exist_ok=True)
    keep = (*DOMAINS, "teacher", *MIXED)
    lines = []
    for entry in entries:
        quality = {name: value for name, value in entry["quality"].items() if name in keep}
        lines.append({**{key: entry[key] for key in ("prompt", "domain", "logp")}, "quality": quality})
    atomic_write(cross, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    words = [word for name in MIXED for word in ("--generalist", name)]
    # as much as the larger model costs, which is then what the experts and the teacher together have to beat
    words += ["--max-cost", f"{cost_of(out / 'midsize'):.4f}"]
    limbeck("route", "fit", str(registry), *words, "--out-of-scope", str(out / "data" / "out_of_scope.jsonl"))


def cost_of(run: Path) -> float:
    """A token's cost as a share of the teacher's: parameters, as the router takes it, all of which a token passes."""
    summary = json.loads((run / "summary.json").read_text())
    return summary["student"]["parameters"] / summary["teacher"]["parameters"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    out: Path = parser.parse_args().out
    write_data(out / "data", rows=ROWS)
    distil(out)
    entries = cross_evaluate(out, DOMAINS, MIXED)
    registry = out / "registry"
    register(out, registry)
    route(out, registry, entries)
    tables = markdown(entries)
    atomic_write(out / "tables.md", tables + "\n")
    print(tables)
    print(f"\nrouter: {registry / 'router' / 'report.html'}\nNext: limbeck serve {registry}")


if __name__ == "__main__":
    main()
