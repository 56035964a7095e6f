"""What a `BoundedWorker` computes, in its own process: each comparison gives a verdict on a reference and a reply."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from limbeck.curate.verdicts import Verdict, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 4 * 2**30
"""Addresses that the process may have: a pattern or formula that grows is stopped before the machine is."""

GRACE_SECONDS = 5.0
MATHS_ERRORS = (ValueError, TypeError, RecursionError, ArithmeticError, AttributeError, NotImplementedError)


def search(pattern: str, text: str) -> Verdict:
    """Whether a pattern matches anywhere in a text."""
    compiled = _compiled(pattern)
    if isinstance(compiled, str):
        return unreadable(pattern, f"is not a regular expression: {compiled}")
    return Verdict(compiled.search(text) is not None, "")


@lru_cache(256)
def _compiled(pattern: str) -> re.Pattern[str] | str:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)


def validate(schema: str, text: str) -> Verdict:
    """Whether a text is JSON of a schema. Nothing that a schema names is fetched."""
    from referencing.exceptions import Unresolvable

    try:
        validator = _validator(schema)
    except SCHEMA_ERRORS as error:
        return unreadable(schema, f"is not a JSON schema: {_line(error)}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Verdict(False, f"the reply is not JSON: {error}")
    try:
        problem = next(validator.iter_errors(value), None)
    except Unresolvable as error:
        why = f"refers to {error.ref!r}, which it does not hold; nothing is fetched: write it under $defs"
        return unreadable(schema, why)
    except RecursionError:
        return Verdict(None, "the schema refers to itself without end, or the reply is too deep for it")
    except re.error as error:
        return unreadable(schema, f"has a pattern that is not a regular expression: {error}")
    return Verdict(problem is None, "" if problem is None else f"{problem.json_path}: {_line(problem.message)}")


class _NoSchema(Exception):
    pass


SCHEMA_ERRORS = (_NoSchema, ValueError, RecursionError, re.error)


@lru_cache(256)
def _validator(text: str) -> Any:
    import jsonschema
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise _NoSchema("a schema is an object, true or false")
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)  # type: ignore[arg-type]
    except jsonschema.SchemaError as error:
        raise _NoSchema(error.message) from None
    # An empty registry: else a schema that comes with the data would make us fetch any address it names.
    return kind(schema, registry=Registry())


def same_maths(reference: str, reply: str) -> Verdict:
    """Whether two texts are equal as mathematics."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nobody but us keeps the time
    try:
        # 0 is none: its own time-outs are signals; this process is killed instead.
        wanted = parse(as_formula(reference), parsing_timeout=0)
        if not wanted:
            return unreadable(reference, "is no mathematics that is understood")
        same = verify(wanted, parse(_plain_dollars(reply), parsing_timeout=0), timeout_seconds=0)
        return Verdict(bool(same), "")
    except MATHS_ERRORS as error:
        return Verdict(None, f"the comparison failed: {_line(error)}")


def as_formula(reference: str) -> str:
    """A reference as LaTeX between dollars, where it does not say so itself. `\\$18.90` is 18.90."""
    plain = _plain_dollars(reference).strip()
    return plain if "$" in plain or "\\boxed" in plain else f"${plain}$" if plain else ""


def _plain_dollars(text: str) -> str:
    """Without signs of currency, and without the space that LaTeX takes away: `\\$1,\\!000` is 1,000."""
    return text.replace("\\$", "").replace("\\!", "")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:80]


COMPARISONS: dict[str, tuple[Callable[[str, str], Verdict], tuple[str, str]]] = {
    "regex": (search, ("", "")),
    "json_schema": (validate, ("true", "1")),
    "math": (same_maths, ("1", "$1$")),
}
"""Each with a question that loads what it needs."""


def answer_all() -> None:
    """Answer questions, lines of JSON, until nobody asks any more: [kind] makes ready, and [kind, seconds, reference,
    reply] is one. A process whose parent was killed in the middle of a question ends by its alarm."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        kind, *question = json.loads(line)
        compare, first = COMPARISONS[kind]
        seconds, reference, reply = question or (None, *first)
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS if seconds else 0)
        answer = compare(reference, reply)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(out, json.dumps(answer).encode() + b"\n")
