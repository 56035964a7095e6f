"""Two tiers of tests: those marked `slow`, and all the others, which one runs before each commit.

The CPU time of every test is measured, in this process and in those that it started and awaited: unlike the clock, it
hardly depends on what else the machine does. A fixture counts with the test that asks for it first. A test without the
mark that takes more than `NOTED` is named at the end of the run; one that takes more than `ALLOWED` fails.
"""

from __future__ import annotations

import resource
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from _pytest.terminal import TerminalReporter

NOTED, ALLOWED = 2.0, 10.0
TIERS = {
    "not slow": "This was the fast tier; `make test-slow` runs the rest, `make test-all` both",
    "slow": "This was the slow tier; `make test` runs the fast one, `make test-all` both",
}
LAST = pytest.StashKey[float]()


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[LAST] = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report each of set-up, call and tear-down."""
    report = yield
    now = cpu_seconds()
    spent, item.config.stash[LAST] = now - item.config.stash[LAST], now
    report.user_properties.append(("cpu_seconds", spent))
    if report.when == "call" and report.passed and spent > ALLOWED and "slow" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"It took {spent:.1f} s of CPU; {ALLOWED:g} are allowed. Make it cheaper, or mark it `slow`."
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    spent: Counter[str] = Counter()
    slow: set[str] = set()
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        if isinstance(report, pytest.TestReport):
            spent[report.nodeid] += dict(report.user_properties).get("cpu_seconds", 0.0)
            slow |= {report.nodeid} if "slow" in report.keywords else set()
    tier = TIERS.get(config.option.markexpr, "These were tests of both tiers")
    terminalreporter.write_line(f"{tier}. {len(spent)} tests, {spent.total():.0f} s of CPU.")
    for name, seconds in spent.most_common():
        if seconds > NOTED and name not in slow:
            terminalreporter.write_line(f"  {seconds:.1f} s of CPU: make it cheaper, or mark it `slow`: {name}")
