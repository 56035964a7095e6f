"""YAML values that remember their lines, and what is refused."""

import math

import pytest
from hypothesis import given

from limbeck.config.yaml import MAX_BYTES, dump_yaml, parse_yaml, read_yaml, resolve
from limbeck.errors import RecipeError
from tests.recipes import VALUES, tuples


@given(VALUES)
def test_dump_and_parse_are_inverse(value):
    for flow in (True, False):
        back = parse_yaml(dump_yaml(value, flow=flow), "x").plain()
        assert back == tuples(value)
        assert type(back) is type(tuples(value))


def test_scalars_of_the_core_schema():
    assert resolve("no") == "no" and resolve("on") == "on"
    assert resolve("3e-4") == 3e-4
    assert resolve("1e6") == 10**6 and isinstance(resolve("1e6"), int)
    assert resolve("1.0") == 1.0 and isinstance(resolve("1.0"), float)
    assert resolve("17_000") == 17000
    assert resolve("1:30") == "1:30" and resolve("2024-01-01") == "2024-01-01"
    assert resolve("true") is True and resolve("~") is None
    assert math.isnan(resolve(".nan")) and resolve("-.inf") == -math.inf
    assert parse_yaml("'5'", "x").plain() == "5"


def test_origins_are_the_lines_of_the_keys():
    node = parse_yaml("a: 1\nb:\n\n  c:\n    - x\n    - y\n", "r.yaml")
    assert node.origin == "r.yaml"
    b = node.value["b"]
    assert b.origin == "r.yaml:2"
    assert b.value["c"].origin == "r.yaml:4"
    assert [item.origin for item in b.value["c"].value] == ["r.yaml:5", "r.yaml:6"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3: the key 'a' is here twice (first on line 1)"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "r.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("x: 1\na: !foo 3", "r.yaml:2: the tag '!foo'"),
        ("a: &x [1]\nb: *x", "r.yaml:1: anchors"),
        ("a: 1\n---\nb: 2", "r.yaml:2: a second document"),
        ("a:\n\tb: 1", "r.yaml:2: not valid YAML (column 1)"),
        ("a: [1, 2", "r.yaml:1: not valid YAML"),
        ("? [a, b]\n: 1", "r.yaml:1: a key must be a word"),
        ("[" * 100, "nested more than 16 deep"),
        ("a: \x00", "r.yaml is not valid YAML"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yaml")
    assert message in str(caught.value)


def test_tabs_get_a_hint():
    with pytest.raises(RecipeError, match="Indent with spaces, not tabs"):
        parse_yaml("a:\n\tb: 1", "r.yaml")


def test_deep_nesting_is_refused_without_recursion():
    with pytest.raises(RecipeError, match="deep"):
        parse_yaml("[" * 60000, "r.yaml")


def test_files(tmp_path):
    (tmp_path / "there.yaml").write_text("a: 1\n")
    assert read_yaml(tmp_path / "there.yaml").plain() == {"a": 1}
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "bom.yaml").plain() == {"a": 1}
    with pytest.raises(RecipeError, match=r"no recipe .*has bom.yaml, there.yaml.*limbeck init"):
        read_yaml(tmp_path / "ther.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_yaml(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 256 KiB"):
        read_yaml(tmp_path / "large")
    (tmp_path / "empty").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty").plain() is None
