"""Deciding is numpy's work alone: a router opens and decides where neither torch nor scikit-learn can be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.router.dataset import FitSettings
from limbeck.router.fit import fit
from limbeck.router.router import write
from limbeck.system.atomic import atomic_dir
from tests.router.routing import cases, costs, prompts

DECIDE = """
import json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "sklearn", "scipy", "transformers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refused())
from limbeck.router.router import Router
from pathlib import Path

router = Router.open(Path(sys.argv[1]))
print(json.dumps([[one.expert, one.confidence] for one in map(router.decide, json.loads(sys.argv[2]))]))
"""


@pytest.mark.slow
def test_a_router_decides_without_torch(tmp_path: Path) -> None:
    router = fit(cases(), FitSettings(costs(), bits=12)).router
    with atomic_dir(tmp_path / "router") as tmp:
        write(tmp, router)
    asked = [*prompts("code", 5, seed=1), "where is the nearest harbour"]
    command = [sys.executable, "-c", DECIDE, str(tmp_path / "router"), json.dumps(asked)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(out.stdout)
    assert found == [[one.expert, one.confidence] for one in map(router.decide, asked)]
    assert {expert for expert, _ in found} >= {"code", None}
