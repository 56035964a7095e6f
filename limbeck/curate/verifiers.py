"""Is a reply right? One function for each kind of verifier, and one that verifies many replies at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from limbeck.curate.answers import compare_exactly, compare_numbers, find_answer, without_thinking
from limbeck.curate.code_blocks import choose_program, json_texts
from limbeck.curate.sandbox.run import SandboxLimits, require, run_tests
from limbeck.curate.verdicts import Verdict, shorten, unreadable
from limbeck.curate.worker import BoundedWorker, TooLate
from limbeck.errors import DataError, MissingExtra, RecipeError, Stopped
from limbeck.recipe import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from limbeck.recipe import Verifier

    Ask = Callable[[Judge, list[list[dict[str, str]]]], list[str]]
    Pair = tuple[str, str]
    StopAsked = Callable[[], bool]

PATTERN_SECONDS = 2.0
"""For a pattern or a schema: those that end need microseconds."""


def verify_all(
    verifier: Verifier,
    pairs: Sequence[Pair],
    *,
    ask: Ask | None = None,
    on_done: Callable[[int], None] = lambda _: None,
    stop_asked: StopAsked = lambda: False,
) -> list[Verdict]:
    """A verdict for every pair of (reply, reference), in order. Equal pairs are verified once; programs run side by
    side. `ask` puts conversations to a judge and returns its replies; `on_done` hears how many are done.

    A reference that cannot be read is no error: the verdict on its replies is unknown, and says so. Raises
    SandboxError, MissingExtra, DataError or RecipeError where the verifier cannot work here, Stopped when a stop was
    asked for.
    """
    fresh = list(dict.fromkeys(pairs))
    found: dict[Pair, Verdict] = {}
    with contextlib.closing(_verdicts(verifier, fresh, ask, stop_asked)) as verdicts:
        for pair, verdict in zip(fresh, verdicts, strict=True):
            found[pair] = verdict
            on_done(len(found))
            if stop_asked():
                raise Stopped("stopped while verifying; run the same command again to go on.")
    return [found[pair] for pair in pairs]


class Checker:
    """Verdicts one at a time, from any thread, with what a verifier needs kept open in between. Raises as
    `verify_all`. A judge is not asked so: it takes many at once."""

    def __init__(self, verifier: Verifier) -> None:
        assert not isinstance(verifier, Judge)
        self._verifier, self._pair, self._lock = verifier, ("", ""), threading.Lock()
        asked = self._asked()
        self._stream = None if isinstance(verifier, UnitTests) else _verdicts(verifier, asked, None, lambda: False)

    def verdict(self, reply: str, reference: str) -> Verdict:
        if self._stream is None:  # a sandbox keeps nothing open
            return verify_all(self._verifier, [(reply, reference)])[0]
        with self._lock:
            self._pair = (reply, reference)
            return next(self._stream)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _asked(self) -> Iterator[Pair]:
        while True:
            yield self._pair


def _verdicts(verifier: Verifier, pairs: Iterable[Pair], ask: Ask | None, stop_asked: StopAsked) -> Generator[Verdict]:
    if isinstance(verifier, UnitTests):
        yield from _run_programs(verifier, pairs)
    elif isinstance(verifier, Judge):
        yield from _ask_judge(verifier, pairs, ask)
    elif isinstance(verifier, Exact):
        yield from (compare_exactly(verifier, reply, reference) for reply, reference in pairs)
    elif isinstance(verifier, Numeric):
        yield from (compare_numbers(verifier, reply, reference) for reply, reference in pairs)
    else:
        yield from _in_a_worker(verifier, pairs, stop_asked)


# ---- comparisons that may never end ----------------------------------------------------------------------------------


def _in_a_worker(
    verifier: Math | Regex | JsonSchema, pairs: Iterable[Pair], stop_asked: StopAsked
) -> Iterator[Verdict]:
    compare = {"math": _mathematics, "regex": _pattern, "json_schema": _schema}[verifier.kind]
    package = {"math": "math_verify", "json_schema": "jsonschema"}.get(verifier.kind)
    if package is not None and find_spec(package) is None:
        raise MissingExtra(package.replace("_", "-"), "verify", f"the verifier {verifier.kind}")
    seconds = verifier.timeout_seconds if isinstance(verifier, Math) else PATTERN_SECONDS
    with contextlib.closing(BoundedWorker(verifier.kind, seconds, stop_asked)) as worker:
        for reply, reference in pairs:
            yield compare(verifier, worker, reply, reference)


def _asked(worker: BoundedWorker, reference: str, text: str) -> Verdict:
    try:
        return Verdict(*worker.ask(reference, text))
    except TooLate as error:
        return Verdict(None, str(error))


def _mathematics(_verifier: Math, worker: BoundedWorker, reply: str, reference: str) -> Verdict:
    return _asked(worker, reference, without_thinking(reply))


def _pattern(verifier: Regex, worker: BoundedWorker, reply: str, reference: str) -> Verdict:
    answer = find_answer(reply, verifier.answer, verifier.marker)
    if answer is None and verifier.pattern is not None:
        return Verdict(False, f"no answer was found ({verifier.answer})")
    found = _asked(worker, reference if verifier.pattern is None else verifier.pattern, answer or "")
    return (
        found
        if found.ok is None
        else Verdict(found.ok and answer is not None, f"the answer is {shorten(answer or '')}")
    )


def _schema(verifier: JsonSchema, worker: BoundedWorker, reply: str, reference: str) -> Verdict:
    common = Path(verifier.path).read_text(encoding="utf-8") if verifier.path is not None else None
    found = [_asked(worker, reference if common is None else common, text) for text in json_texts(reply)]
    if common is not None and found[0].blames_reference:
        raise DataError(f"{verifier.path}: {found[0].reason}.")
    if len({verdict.ok for verdict in found}) > 1:
        return Verdict(None, f"{len(found)} code blocks of JSON, of which some are of the schema; give one")
    return found[-1]


# ---- programs --------------------------------------------------------------------------------------------------------


class ProgramTests(NamedTuple):
    """The tests of a row: sources, and the function that `check(candidate)` is given, where the data names it."""

    sources: list[str]
    entry_point: str | None = None


def _run_programs(verifier: UnitTests, pairs: Iterable[Pair]) -> Iterator[Verdict]:
    require(verifier.isolation)
    limits = SandboxLimits(verifier.timeout_seconds, verifier.memory_mib * 2**20, verifier.processes)

    def run(pair: Pair) -> Verdict:
        try:
            suite = tests_of(pair[1])
        except DataError as error:
            return unreadable(pair[1], str(error))
        chosen = choose_program(pair[0], suite.sources, suite.entry_point)
        if chosen.text is None:
            return Verdict(None, chosen.why)
        found = run_tests(chosen.text, suite.sources, limits, verifier.isolation, entry_point=suite.entry_point)
        return Verdict(found.ok, found.reason)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            yield from pool.map(run, pairs)
        finally:
            pool.shutdown(cancel_futures=True)


def tests_of(reference: str) -> ProgramTests:
    """The tests of a row: Python source, a JSON list of it, or a JSON object as HumanEval's rows are, with `test` and
    `entry_point`. Raises DataError when there are none, or they are no Python."""
    try:
        found = json.loads(reference)
    except (ValueError, RecursionError):
        found = reference
    entry = found.get("entry_point") if isinstance(found, dict) else None
    found = found.get("test", found.get("tests")) if isinstance(found, dict) else found
    sources = [found] if isinstance(found, str) else found
    if not isinstance(sources, list) or not sources or not all(isinstance(one, str) and one.strip() for one in sources):
        raise DataError("holds no tests; it must be Python, a JSON list of it, or an object with test and entry_point.")
    for source in sources:
        try:
            compile(source, "tests", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"holds tests that are no Python: {error}.") from error
    return ProgramTests(sources, entry if isinstance(entry, str) else None)


# ---- a judge ---------------------------------------------------------------------------------------------------------


def _ask_judge(verifier: Judge, pairs: Iterable[Pair], ask: Ask | None) -> Iterator[Verdict]:
    if ask is None:
        raise RecipeError("the verifier judge needs a model to ask, and there is none here; choose another verifier.")
    asked = [
        [
            {"role": "system", "content": verifier.instructions},
            {"role": "user", "content": f"Reference:\n{reference}\n\nAnswer:\n{without_thinking(reply)}"},
        ]
        for reply, reference in pairs
    ]
    for said in ask(verifier, asked):
        words = re.findall(r"[A-Z]+", without_thinking(said).upper())
        named = {words[0], words[-1]} & {"CORRECT", "INCORRECT"} if words else set()
        yield Verdict(named == {"CORRECT"} if len(named) == 1 else None, f"the judge said {shorten(said)}")
