import json
import socket
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.curate import verifiers
from limbeck.curate.sandbox.run import unavailable
from limbeck.curate.verifiers import Verdict, find_answer, to_number, verify_all, without_thinking
from limbeck.errors import DataError, RecipeError, Stopped
from limbeck.recipe import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests


def oks(verifier, *pairs):
    return [verdict.ok for verdict in verify_all(verifier, list(pairs))]


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("<think>4</think> 5 ", "5"),
        ("4", "4"),
        ("a<think>b</think>c<think>d</think>e", "e"),
        ("<think>never ended", ""),
        ("reasoning that was opened by the template</think>6", "6"),
    ],
)
def test_reasoning_is_no_answer(reply, left):
    assert without_thinking(reply) == left


@pytest.mark.parametrize(
    ("where", "reply", "answer"),
    [
        ("whole", " 5 ", "5"),
        ("last_line", "so\n\n five \n", "five"),
        ("last_number", "1 and 2, then 3,000.5.", "3,000.5"),
        ("last_number", "none", None),
        ("boxed", r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1", None),
        ("marker", "a #### b #### 7", "7"),
        ("marker", "7", None),
    ],
)
def test_where_the_answer_stands(where, reply, answer):
    assert find_answer(reply, where, "####") == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("12 %", Fraction(12, 100)),
        ("$3.50", Fraction(7, 2)),
        ("1e3", Fraction(1000)),
        ("1e999999999", None),
        ("9" * 500, None),
        ("1/0", None),
        ("five", None),
        ("", None),
    ],
)
def test_numbers_as_people_write_them(text, number):
    assert to_number(text) == number


@given(st.fractions(max_denominator=10**6))
def test_every_fraction_is_read(number):
    assert to_number(str(number)) == number


@given(st.integers(-(10**12), 10**12))
def test_thousands_may_be_parted(number):
    assert to_number(f"{number:,}") == number
    assert oks(Numeric(), (f"It is {number:,} apples.", str(number))) == [True]


def test_numeric():
    assert oks(Numeric(), ("1/3", "0.3333333"), ("0.334", "1/3"), ("nothing", "1")) == [True, False, False]
    assert oks(Numeric(tolerance=0.01), ("0.334", "1/3")) == [True]
    assert oks(Numeric(answer="marker"), ("7 #### 8 apples", "#### 8"), ("8", "8")) == [True, False]
    with pytest.raises(DataError, match="holds no number"):
        verify_all(Numeric(), [("1", "one")])


def test_exact():
    pairs = [("Paris.", "paris"), ("Paris", "Paris"), ("in Paris", "Paris")]
    assert oks(Exact(), *pairs) == [False, True, False]
    assert oks(Exact(normalize=True), *pairs) == [True, True, False]


def test_regex():
    assert oks(Regex(pattern=r"^\d+$"), ("12", ""), ("a", "")) == [True, False]
    assert oks(Regex(), ("12", r"^1"), ("12", r"^2")) == [True, False]
    with pytest.raises(DataError, match="not a regular expression"):
        verify_all(Regex(), [("a", "(")])


def test_json_schema(tmp_path):
    pytest.importorskip("jsonschema")
    schema = json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    replies = ['{"a": 1}', 'Here:\n```json\n{"a": 1}\n```', '{"a": "x"}', "{}", "no", "[" * 100_000]
    assert oks(JsonSchema(), *[(reply, schema) for reply in replies]) == [True, True, False, False, False, False]
    file = tmp_path / "schema.json"
    file.write_text(schema)
    assert oks(JsonSchema(path=str(file)), ('{"a": 2}', "")) == [True]
    with pytest.raises(DataError, match="not a JSON schema"):
        verify_all(JsonSchema(), [("{}", '{"type": 5}')])


def test_a_schema_fetches_nothing():
    pytest.importorskip("jsonschema")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        with pytest.raises(DataError, match="nothing is fetched"):
            verify_all(JsonSchema(), [("{}", json.dumps({"$ref": address}))])
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    inner = json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}})
    assert oks(JsonSchema(), ("{}", inner), ("1", inner)) == [True, False]


def test_math():
    pytest.importorskip("math_verify")
    pairs = [("$x^2+1$", "1+x^2"), (r"\boxed{\frac12}", "0.5"), ("42", "43"), ("$9^{9^{9^{9}}}$", "1")]
    found = verify_all(Math(timeout_seconds=2.0), pairs)
    assert [verdict.ok for verdict in found] == [True, True, False, None]
    assert "longer than 2 s" in found[-1].reason


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


@pytest.mark.parametrize("reference", ["", "[]", "[1]", "  "])
def test_rows_without_tests(reference):
    with pytest.raises(DataError, match="holds no tests"):
        verifiers.tests_of(reference)


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
