"""A test that is slow and not marked so is named, or fails; which tier ran is said."""

import pytest

from tests import tiers

SPINS = """
import time, pytest

def spin():
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass

def test_quick(): pass
def test_spins(): spin()
@pytest.mark.slow
def test_marked(): spin()
"""


@pytest.mark.parametrize(("allowed", "failed"), [(10.0, 0), (0.1, 1)])
def test_what_takes_long_is_named_and_what_takes_too_long_fails(pytester, monkeypatch, allowed, failed):
    pytester.makepyfile(SPINS)
    with monkeypatch.context() as patch:  # over before this test itself is judged
        patch.setattr(tiers, "NOTED", 0.1)
        patch.setattr(tiers, "ALLOWED", allowed)
        found = pytester.runpytest_inprocess("-p", "tests.tiers", "-o", "markers=slow: takes long")
    found.assert_outcomes(passed=3 - failed, failed=failed)
    assert ("2 s of CPU; 0.1 are allowed" in found.stdout.str()) is bool(failed)
    assert [line for line in found.outlines if "mark it `slow`: " in line and line.endswith("::test_spins")]
    assert not [line for line in found.outlines if line.endswith(("::test_quick", "::test_marked"))]


@pytest.mark.parametrize(("tier", "count", "other"), [("not slow", 2, "make test-slow"), ("slow", 1, "`make test` ")])
def test_the_tier_is_named_with_the_way_to_the_other(pytester, tier, count, other):
    pytester.makepyfile(SPINS)
    found = pytester.runpytest_inprocess("-p", "tests.tiers", "-o", "markers=slow: takes long", "-m", tier)
    [line] = [line for line in found.outlines if line.startswith("This was the")]
    assert other in line and f"{count} tests, " in line
