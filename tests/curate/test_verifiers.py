import contextlib
import json
import socket
import subprocess
import sys
import time

import pytest

from limbeck.curate import verifiers
from limbeck.curate.sandbox.run import unavailable
from limbeck.curate.verdicts import Verdict
from limbeck.curate.verifiers import verify_all
from limbeck.errors import DataError, RecipeError, Stopped
from limbeck.recipe import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests


def oks(verifier, *pairs):
    return [verdict.ok for verdict in verify_all(verifier, list(pairs))]


def test_numeric():
    assert oks(Numeric(), ("1/3", "0.3333333"), ("0.334", "1/3"), ("nothing", "1")) == [True, False, False]
    assert oks(Numeric(tolerance=0.01), ("0.334", "1/3")) == [True]
    assert oks(Numeric(answer="marker"), ("7 #### 8 apples", "#### 8"), ("8", "8")) == [True, False]


def test_regex():
    assert oks(Regex(pattern=r"^\d+$"), ("12", ""), ("a", "")) == [True, False]
    assert oks(Regex(), ("12", r"^1"), ("12", r"^2")) == [True, False]
    with pytest.raises(ValueError, match="not a regular expression"):
        Regex(pattern="(")


def test_json_schema(tmp_path):
    pytest.importorskip("jsonschema")
    schema = json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    replies = ['{"a": 1}', 'Here:\n```json\n{"a": 1}\n```', '{"a": "x"}', "{}", "no", "[" * 100_000]
    assert oks(JsonSchema(), *[(reply, schema) for reply in replies]) == [True, True, False, False, False, False]
    file = tmp_path / "schema.json"
    file.write_text(schema)
    assert oks(JsonSchema(path=str(file)), ('{"a": 2}', "")) == [True]
    file.write_text('{"type": 5}')
    with pytest.raises(DataError, match="not a JSON schema"):
        verify_all(JsonSchema(path=str(file)), [("{}", "")])


def test_several_blocks_of_json_must_agree():
    pytest.importorskip("jsonschema")
    schema = json.dumps({"type": "object"})
    both = "```json\n{}\n```\nor\n```json\n%s\n```"
    assert oks(JsonSchema(), (both % '{"a": 1}', schema), (both % "1", schema)) == [True, None]


def test_a_schema_fetches_nothing():
    pytest.importorskip("jsonschema")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        verdict = verify_all(JsonSchema(), [("{}", json.dumps({"$ref": address}))])[0]
        assert verdict.blames_reference and "nothing is fetched" in verdict.reason
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    inner = json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}})
    assert oks(JsonSchema(), ("{}", inner), ("1", inner)) == [True, False]


@pytest.mark.slow
def test_math():
    pytest.importorskip("math_verify")
    pairs = [("$x^2+1$", "1+x^2"), (r"\boxed{\frac12}", "0.5"), ("42", "43"), ("$9^{9^{9^{9}}}$", "1")]
    found = verify_all(Math(timeout_seconds=2.0), pairs)
    assert [verdict.ok for verdict in found] == [True, True, False, None]
    assert "longer than 2 s" in found[-1].reason


@pytest.mark.slow  # sympy
def test_currency_in_mathematics():
    pytest.importorskip("math_verify")
    pairs = [(rf"So it is \boxed{{{reply}}}.", r"\$18.90") for reply in (r"\$18.90", "18.90", "18.9", "18")]
    assert oks(Math(), *pairs) == [True, True, True, False]
    assert oks(Math(), (r"\boxed{\$1,\!000}", r"\$1,\!000"), (r"\boxed{1000}", r"$\$1{,}000$")) == [True, True]


UNREADABLE = {
    "numeric": (
        Numeric(),
        "1",
        ["one", "", "(2, 3)", "x^2", "[0, 5)", "10,5", "2 and 3", r"\{1, 2\}", "5:30", "2020-05-06"],
    ),
    "regex": (Regex(), "a", ["(", "[", "a**", "(?P<a", "\\"]),
    "json_schema": (JsonSchema(), "{}", ["", "{", '{"type": 5}', "5", '{"pattern": "("}', '{"$ref": "no/such"}']),
    "unit_tests": (
        UnitTests(),
        "def f(): pass",
        ["", "[]", "[1]", "{}", "f() is 3", '["assert f() =="]', '{"entry_point": "f"}'],
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_no_reply_can_be_compared_with_is_unknown_and_the_references_fault(kind):
    verifier, reply, references = UNREADABLE[kind]
    if kind == "json_schema":
        pytest.importorskip("jsonschema")
        references = [one for one in references if "pattern" not in one]  # of texts only: see below
    if kind == "unit_tests" and unavailable("bwrap"):
        pytest.skip("no sandbox here")
    found = verify_all(verifier, [(reply, reference) for reference in references])
    assert [verdict for verdict in found if not verdict.blames_reference] == []


SLOW_PATTERNS = ["(a+)+$", "(a|a)*$", "(a*)*b"]
TEXT = "a" * 40 + "!"


@pytest.mark.slow
@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_a_pattern_that_never_ends_is_unknown(pattern, monkeypatch):
    """Also in a schema, and in the verdicts that rejection sampling takes one at a time."""
    monkeypatch.setattr(verifiers, "PATTERN_SECONDS", 0.3)
    schema = json.dumps({"properties": {"a": {"pattern": pattern}}})
    begun = time.monotonic()
    slow = verify_all(Regex(), [(TEXT, pattern), ("a", "a")])
    assert [verdict.ok for verdict in slow] == [None, True] and "longer than 0.3 s" in slow[0].reason
    assert oks(JsonSchema(), (json.dumps({"a": TEXT}), schema), ('{"a": "b"}', '{"type": "object"}')) == [None, True]
    with contextlib.closing(verifiers.Checker(Regex(pattern=pattern))) as checker:
        assert [checker.verdict(text, "").ok for text in (TEXT, "ab" if pattern.endswith("b") else "a")] == [None, True]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"pattern": "("},
    ],
)
def test_schemas_that_end_in_themselves_are_unknown(schema):
    pytest.importorskip("jsonschema")
    assert oks(JsonSchema(), ('"a"', json.dumps(schema))) == [None]


@pytest.mark.slow
def test_a_stop_is_heeded_while_a_pattern_runs():
    begun = time.monotonic()
    with pytest.raises(Stopped):
        verify_all(Regex(), [(TEXT, "(a+)+$")], stop_asked=lambda: time.monotonic() - begun > 1.0)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("verifier", ["Math()", "Regex(pattern='5')", "JsonSchema()"])
def test_a_script_without_a_main_guard_works(verifier, tmp_path):
    """The process that compares does not run the script again."""
    pytest.importorskip("math_verify")
    script = tmp_path / "mine.py"
    lines = ["from limbeck.curate.verifiers import verify_all", "from limbeck.recipe import Math, Regex, JsonSchema"]
    reference = "{}" if "Json" in verifier else "5"
    lines.append(f"print(verify_all({verifier}, [('5', {reference!r})])[0].ok)")
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(bool(unavailable("bwrap")), reason="no sandbox here")
def test_unit_tests_as_mbpp_has_them():
    tests = json.dumps(["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
    good = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    assert oks(UnitTests(), (good, tests), (good.replace("+", "-"), tests), ("def add(a, b): return a + b", tests)) == [
        True,
        False,
        True,
    ]
    human_eval = "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)"
    assert oks(UnitTests(), (good, human_eval)) == [True]
    row = json.dumps({"test": human_eval.removesuffix("check(add)"), "entry_point": "add"})
    two = good.replace("def add", "def other(a):\n    return a\n\ndef add")
    assert oks(UnitTests(), (good, row), (two, row), (two, json.loads(row)["test"])) == [True, True, None]


def test_a_judge_is_asked_and_understood():
    said = iter(
        [
            "CORRECT",
            "It is INCORRECT.",
            "Correct, I think",
            "no idea",
            "CORRECT or INCORRECT",
            "<think>INCORRECT</think>CORRECT",
        ]
    )
    asked = []

    def ask(_judge, conversations):
        asked.extend(conversations)
        return [next(said) for _ in conversations]

    pairs = [(f"<think>x</think>{n}", "5") for n in range(6)]
    found = verify_all(Judge(path="judge"), pairs, ask=ask)
    assert [verdict.ok for verdict in found] == [True, False, True, None, None, True]
    assert asked[0][-1]["content"] == "Reference:\n5\n\nAnswer:\n0"
    with pytest.raises(RecipeError, match="needs a model to ask"):
        verify_all(Judge(path="judge"), pairs)


def test_equal_replies_are_verified_once_and_order_stays():
    calls = []

    def ask(_judge, conversations):
        calls.extend(conversations)
        return ["CORRECT" if "b" in talk[-1]["content"][-1] else "INCORRECT" for talk in conversations]

    pairs = [("a", "r"), ("b", "r"), ("a", "r")]
    assert verify_all(Judge(path="judge"), pairs, ask=ask) == [
        Verdict(False, "the judge said 'INCORRECT'"),
        Verdict(True, "the judge said 'CORRECT'"),
        Verdict(False, "the judge said 'INCORRECT'"),
    ]
    assert len(calls) == 2


def test_a_stop_is_heeded():
    with pytest.raises(Stopped):
        verify_all(Exact(), [("a", "a"), ("b", "b")], stop_asked=lambda: True)
