"""Two ranks under torchrun, of which one is killed; torchrun starts both again.

    torchrun ... -m tests.soak.ranks PLAN WORDS     `limbeck WORDS`; PLAN has an entry RANK:STEP for each start

The rank of a start's entry kills itself before it takes that step (steps are counted from the start's own first).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

from limbeck.cli import main
from limbeck.system.ranks import launch
from limbeck.train import loop
from tests.soak.child import PATIENCE, Ended
from tests.soak.kinds import Kind, Outcome, bad
from tests.soak.workspace import Base, Workspace, outputs_of

ROOT = Path(__file__).parents[2]
STARTING = 1_000
"""As a step: killed before the ranks have met."""
KINDS_OF_RANKS = ("ddp", "fsdp2")
ALONE = threading.Lock()  # two processes a launch are enough for two cores


def restart(workspace: Workspace, rng: Random) -> Outcome:
    """Killed at every start but the last; what comes out is what two ranks make undisturbed."""
    kind = rng.choice(KINDS_OF_RANKS)
    kills = [(rng.randint(0, 1), rng.choice([1, 2, 3, STARTING])) for _ in range(rng.randint(1, 3))]
    plan = ",".join(f"{rank}:{step}" for rank, step in kills)
    what = f"{kind}, of which {plan} (rank:step) were killed"
    with ALONE:
        wanted = _undisturbed(workspace.base, kind)
        workspace.before("train")
        ended = launched(workspace.base, kind, workspace.run, plan)
    if ended.code != 0:
        return bad(what, ended.wrong if ended.code is None else f"exit code {ended.code}. {ended.tail}")
    found = _weights(workspace.run)
    return Outcome("healed", what) if found == wanted else bad(what, f"{found} is not {wanted}")


def launched(base: Base, kind: str, run: Path, plan: str) -> Ended:
    """`limbeck train` in two ranks, started again as often as the plan has entries."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    again = ["--max-restarts", str(plan.count(":")), "--monitor-interval", "0.2"]
    words = ["train", str(base.recipe_file), f"train.parallel={kind}", "train.accumulate=2", "--run-dir", str(run)]
    command = [sys.executable, *torchrun, *again, "-m", "tests.soak.ranks", plan or "-", *words]
    begun = time.monotonic()
    with Path(f"{run}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    return Ended(code, Path(f"{run}.log").read_text(errors="replace"), time.monotonic() - begun)


def _undisturbed(base: Base, kind: str) -> dict[str, str]:
    """What two ranks make: another rounding than that of one process. Done once."""
    run = base.folder / kind
    if not run.exists():
        Workspace(base, base.folder / f"{kind}-tmp").before("train")
        ended = launched(base, kind, base.folder / f"{kind}-tmp" / "run", "")
        assert ended.code == 0, ended.said
        shutil.move(base.folder / f"{kind}-tmp" / "run", run)
    return _weights(run)


def _weights(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in outputs_of(run, run).items() if name.startswith("train/")}


def _run_rank(plan: str, words: list[str]) -> None:
    launch_ = launch()
    assert launch_ is not None
    kills = dict(enumerate(plan.split(","))) if plan != "-" else {}
    rank, _, step = kills.get(launch_.restarts, "-1:0").partition(":")
    if launch_.rank == int(rank) and int(step) == STARTING:
        os.kill(os.getpid(), signal.SIGKILL)
    taken, real = [0], loop.train_step

    def train_step(*args, **kwargs):  # type: ignore[no-untyped-def]
        taken[0] += 1
        if launch_.rank == int(rank) and taken[0] == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    loop.train_step = train_step
    sys.argv = ["limbeck", *words]
    main()


KINDS = (
    Kind("restart", "one of two ranks (ddp, fsdp2) is killed, up to three times; torchrun starts both again", restart),
)

if __name__ == "__main__":
    _run_rank(sys.argv[1], sys.argv[2:])
