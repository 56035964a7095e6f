"""Is a reply right? One function for each kind of verifier, and one that verifies many replies at once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.curate.sandbox.run import SandboxLimits, require, run_tests
from limbeck.errors import DataError, MissingExtra, RecipeError, Stopped
from limbeck.metrics.pass_at_k import last_boxed
from limbeck.recipe import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from limbeck.recipe import Verifier

    Ask = Callable[[Judge, list[list[dict[str, str]]]], list[str]]
    Pair = tuple[str, str]

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*%?")
CODE = re.compile(r"```[ \t]*(\w*)[ \t]*\n(.*?)```", re.DOTALL)
MATHS_ERRORS = (ValueError, TypeError, RecursionError, ArithmeticError, AttributeError, NotImplementedError)
LONGEST_NUMBER = 400
"""Characters of a number: beyond, exact arithmetic takes longer than it is worth."""


class Verdict(NamedTuple):
    """`ok` is None where it could not be said: that is not the same as wrong."""

    ok: bool | None
    reason: str


def verify_all(
    verifier: Verifier,
    pairs: Sequence[Pair],
    *,
    ask: Ask | None = None,
    on_done: Callable[[int], None] = lambda _: None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> list[Verdict]:
    """A verdict for every pair of (reply, reference), in order. Equal pairs are verified once; programs run side by
    side. `ask` puts conversations to a judge and returns its replies; `on_done` hears how many are done.

    Raises SandboxError, MissingExtra or RecipeError where the verifier cannot work here, DataError for a reference that
    it cannot read, Stopped when a stop was asked for.
    """
    fresh = list(dict.fromkeys(pairs))
    found: dict[Pair, Verdict] = {}
    for pair, verdict in zip(fresh, _verdicts(verifier, fresh, ask), strict=True):
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
        self._stream = None if isinstance(verifier, UnitTests) else _verdicts(verifier, self._asked(), None)

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


def _verdicts(verifier: Verifier, pairs: Iterable[Pair], ask: Ask | None) -> Generator[Verdict]:
    if isinstance(verifier, UnitTests):
        yield from _run_programs(verifier, pairs)
    elif isinstance(verifier, Math):
        yield from _compare_maths(verifier, pairs)
    elif isinstance(verifier, Judge):
        yield from _ask_judge(verifier, pairs, ask)
    elif isinstance(verifier, JsonSchema):
        validate = _schemas(verifier)
        yield from (validate(reply, reference) for reply, reference in pairs)
    else:
        compare = {"exact": _exact, "numeric": _numeric, "regex": _regex}[verifier.kind]
        yield from (compare(verifier, reply, reference) for reply, reference in pairs)


# ---- where the answer is ---------------------------------------------------------------------------------------------


def without_thinking(reply: str) -> str:
    """What stands behind the reasoning. A reply that never ended its reasoning has no answer."""
    before, tag, after = reply.rpartition("</think>")
    if tag:
        return after.strip()
    return before.strip() if "<think>" in reply else reply.strip()


def find_answer(reply: str, where: str, marker: str) -> str | None:
    """The answer in a reply; None where it does not stand."""
    text = without_thinking(reply)
    if where == "last_line":
        return text.splitlines()[-1].strip() if text else None
    if where == "last_number":
        found = [match[0] for match in NUMBER.finditer(text) if any(char.isdigit() for char in match[0])]
        return found[-1].strip() if found else None
    if where == "boxed":
        return boxed.strip() if (boxed := last_boxed(text)) is not None else None
    if where == "marker":
        return text.rpartition(marker)[2].strip() if marker in text else None
    return text


# ---- comparisons -----------------------------------------------------------------------------------------------------


def _exact(verifier: Exact, reply: str, reference: str) -> Verdict:
    answer = find_answer(reply, verifier.answer, verifier.marker)
    if answer is None:
        return Verdict(False, f"no answer was found ({verifier.answer})")
    fold = _folded if verifier.normalize else str.strip
    return Verdict(fold(answer) == fold(reference), f"the answer is {_short(answer)}")


def _folded(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def _numeric(verifier: Numeric, reply: str, reference: str) -> Verdict:
    wanted = _number_in(reference)
    if wanted is None:
        raise DataError(f"the reference {_short(reference)} holds no number; use another verifier for this row.")
    text = find_answer(reply, verifier.answer, verifier.marker)
    answer = _number_in(text)
    if answer is None:
        return Verdict(False, f"no number was found ({verifier.answer})")
    error = abs(answer - wanted) / max(abs(wanted), 1)
    return Verdict(error <= Fraction(verifier.tolerance), f"the answer is {_short(text or '')}")


def _number_in(text: str | None) -> Fraction | None:
    """The text as a number, or else the last number in it."""
    whole = to_number(text)
    return whole if whole is not None else to_number(find_answer(text or "", "last_number", ""))


def to_number(text: str | None) -> Fraction | None:
    """A number as people write it, exactly; None for what is none (or is written with more than 400 characters)."""
    if text is None or len(text) > LONGEST_NUMBER:
        return None
    plain = text.strip().replace(",", "").replace("$", "").replace(" ", "").rstrip(".")
    percent = plain.endswith("%")
    top, slash, bottom = plain.rstrip("%").partition("/")
    exponent = re.search(r"[eE][-+]?(\d+)$", top)
    if exponent and len(exponent[1]) > 3:
        return None
    try:
        value = Fraction(top) / (Fraction(bottom) if slash else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def _regex(verifier: Regex, reply: str, reference: str) -> Verdict:
    pattern = verifier.pattern if verifier.pattern is not None else reference
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{_short(pattern)} is not a regular expression: {error}.") from error
    answer = find_answer(reply, verifier.answer, verifier.marker)
    return Verdict(answer is not None and compiled.search(answer) is not None, f"the answer is {_short(answer or '')}")


def _schemas(verifier: JsonSchema) -> Callable[[str, str], Verdict]:
    try:
        import jsonschema
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError as error:
        raise MissingExtra("jsonschema", "verify", "the verifier json_schema") from error
    made: dict[str, Any] = {}
    common = Path(verifier.path).read_text() if verifier.path is not None else None

    def validate(reply: str, reference: str) -> Verdict:
        text = reference if common is None else common
        if text not in made:
            try:
                schema = json.loads(text)
                # An empty registry: else a schema that comes with the data would make us fetch any address it names.
                made[text] = validator_for(schema)(schema, registry=Registry())
                made[text].check_schema(schema)
            except (ValueError, jsonschema.SchemaError) as error:
                raise DataError(f"{_short(text)} is not a JSON schema: {_short(str(error))}.") from error
        try:
            value = json.loads(_code(reply, "json"))
        except (ValueError, RecursionError) as error:
            return Verdict(False, f"the reply is not JSON: {error}")
        try:
            problem = next(made[text].iter_errors(value), None)
        except Unresolvable as error:
            what = f"the schema {_short(text)} refers to {error.ref!r}, which it does not hold"
            raise DataError(f"{what}; nothing is fetched: write it into the schema, under $defs.") from error
        return Verdict(problem is None, "" if problem is None else f"{problem.json_path}: {_short(problem.message)}")

    return validate


def _code(reply: str, language: str) -> str:
    """The last code block of the language (or of none), or else the reply as a whole."""
    text = without_thinking(reply)
    blocks = [body for name, body in CODE.findall(text) if name.lower() in (language, "", "py", "python3")]
    return blocks[-1] if blocks else text


# ---- mathematics -----------------------------------------------------------------------------------------------------


def _same_maths(reply: str, reference: str) -> bool:
    """In a process of its own: sympy can take for ever."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nobody but us keeps the time
    # 0 is none: its own time-outs are signals; this process is killed instead.
    wanted = parse(reference if "$" in reference or "\\boxed" in reference else f"${reference}$", parsing_timeout=0)
    return bool(wanted) and bool(verify(wanted, parse(reply, parsing_timeout=0), timeout_seconds=0))


def _compare_maths(verifier: Math, pairs: Iterable[Pair]) -> Iterator[Verdict]:
    """In a worker that is killed when it takes too long: the library's own time-outs are signals to a main thread."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise MissingExtra("math-verify", "verify", "the verifier math") from error
    pool = _maths_worker()
    try:
        for reply, reference in pairs:
            try:
                same = pool.submit(_same_maths, without_thinking(reply), reference).result(verifier.timeout_seconds)
                yield Verdict(same, "")
            except (LateError, BrokenProcessPool) as error:
                logger.info("the process that compares formulas is started again (%s)", type(error).__name__)
                _end(pool)
                pool = _maths_worker()
                yield Verdict(None, f"the comparison took longer than {verifier.timeout_seconds:g} s")
            except MATHS_ERRORS as error:
                yield Verdict(None, f"the comparison failed: {_short(str(error))}")
    finally:
        _end(pool)


def _maths_worker() -> ProcessPoolExecutor:
    """A process that has compared once: imports are not a comparison's time."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(_same_maths, "$1$", "1").result()
    return pool


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)


# ---- programs --------------------------------------------------------------------------------------------------------


def _run_programs(verifier: UnitTests, pairs: Iterable[Pair]) -> Iterator[Verdict]:
    require(verifier.isolation)
    limits = SandboxLimits(verifier.timeout_seconds, verifier.memory_mib * 2**20, verifier.processes)

    def run(pair: Pair) -> Verdict:
        outcome = run_tests(_code(pair[0], "python"), tests_of(pair[1]), limits, verifier.isolation)
        return Verdict(outcome.ok, outcome.reason)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            yield from pool.map(run, pairs)
        finally:
            pool.shutdown(cancel_futures=True)


def tests_of(reference: str) -> list[str]:
    """The tests of a row: a JSON list of sources, or one source. Raises DataError when there is none."""
    try:
        found = json.loads(reference)
    except ValueError:
        found = [reference]
    if not isinstance(found, list) or not found or not all(isinstance(test, str) and test.strip() for test in found):
        raise DataError(f"the reference {_short(reference)} holds no tests; it must be Python, or a JSON list of it.")
    return found


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
        yield Verdict(named == {"CORRECT"} if len(named) == 1 else None, f"the judge said {_short(said)}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:77]}...")
