"""What a block cost, and that the module can be imported where there is no `resource` (Windows)."""

import subprocess
import sys

import torch

from limbeck.system.cost import measure


def test_the_peak_of_a_block() -> None:
    with measure() as small:
        pass
    with measure() as large:
        held = torch.ones(2**25)
        del held
    assert large.peak_bytes - small.peak_bytes > 2**26 and large.seconds > 0.0


def test_it_can_be_imported_without_resource() -> None:
    code = "import psutil, sys; sys.modules['resource'] = None; import limbeck.system.cost"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
