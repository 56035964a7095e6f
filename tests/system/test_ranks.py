import os
import subprocess
import sys

import pytest

from limbeck.system.ranks import Launch, first_rank, launch


@pytest.fixture
def environment(monkeypatch):
    """Sets what a launcher would set; names not given are not there."""

    def set_to(**values: str) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_a_process_that_nobody_launched_is_the_first_and_only_one(environment):
    environment()
    assert launch() is None and first_rank()


def test_a_launched_process_has_the_launchers_numbers(environment):
    environment(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", TORCHELASTIC_RESTART_COUNT="2")
    assert launch() == Launch(rank=5, world=8, local_rank=1, restarts=2) and not first_rank()
    environment(RANK="0", WORLD_SIZE="8")
    assert launch() == Launch(rank=0, world=8, local_rank=0, restarts=0) and first_rank()


@pytest.mark.parametrize("value", ["", "abc", "-1"])
def test_a_number_that_is_none_counts_as_not_given(environment, value):
    environment(RANK=value)
    assert launch() == Launch(0, 1, 0, 0) and first_rank()


def test_torch_is_not_imported():
    code = "import sys, limbeck.system.ranks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
