"""JSON that says itself whether it is as it was written."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck
from limbeck.errors import StoreError
from limbeck.system.atomic import seal_dir
from limbeck.system.sealed import (
    line_value,
    read_json,
    read_json_or,
    read_sealed,
    seal,
    sealed_line,
    sealed_lines,
    unseal,
    write_json,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.text().filter(lambda key: key != "crc"), VALUES)


@settings(max_examples=50)
@given(OBJECTS, st.sampled_from([None, 1]))
def test_what_is_sealed_is_plain_json_and_comes_back(value, indent):
    text = seal(json.dumps(value, indent=indent).encode())
    assert {**value, "crc": json.loads(text)["crc"]} == json.loads(text)
    assert unseal(text) == value and unseal(text + b"\n") == value


@pytest.mark.slow
@given(OBJECTS, st.data())
def test_a_changed_byte_is_found_or_without_effect(value, data):
    """Without effect: the name of the checksum, or white space behind it."""
    line = sealed_line(value)
    at = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    found = line_value(line[:at] + bytes([other]) + line[at + 1 :])
    assert found is None or {key: found.get(key) for key in value} == value


def test_a_file_names_its_damage_and_what_heals_it(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"kl": 0.25})
    assert read_json(file, "Mend it.") == {"kl": 0.25}
    written = file.read_bytes()
    for damage in (written.replace(b"0.25", b"0.75"), written[:-4], b"", b"\xff", b"[" * 10_000, b"[]", b"3"):
        file.write_bytes(damage)
        with pytest.raises(StoreError, match=r"a.json is damaged .* Mend it."):
            read_json(file, "Mend it.")
        assert read_json_or(file, {"x": 1}) == {"x": 1}
    file.unlink()
    with pytest.raises(StoreError, match="a.json is damaged"):
        read_json(file, "Mend it.")


def test_what_was_written_without_a_checksum_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"kl": 0.25}')
    (tmp_path / "b.json").write_text('["a"]')
    assert read_json(tmp_path / "a.json", "") == {"kl": 0.25} and read_json(tmp_path / "b.json", "", list) == ["a"]


def test_a_file_of_a_sealed_folder_is_compared_with_its_manifest(tmp_path):
    file = tmp_path / "answers.json"
    file.write_text('["a"]')
    seal_dir(tmp_path)
    assert read_json(file, "", list) == ["a"]
    file.write_text('["b"]')
    with pytest.raises(StoreError, match=r"answers.json is damaged \(its SHA-256"):
        read_json(file, "", list)


def test_damaged_lines_are_none_and_half_a_line_is_what_a_kill_leaves(tmp_path):
    file = tmp_path / "a.jsonl"
    assert list(read_sealed(file)) == []
    lines = [sealed_line({"step": step}) for step in range(3)]
    file.write_bytes(lines[0] + lines[1].replace(b"1", b"7", 1) + lines[2] + lines[0][:-6])
    assert list(read_sealed(file)) == [(1, {"step": 0}), (2, None), (3, {"step": 2})]


def test_a_last_line_whose_newline_is_damaged_is_whole(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(sealed_line({"step": 1}) + sealed_line({"step": 2})[:-1] + b"\x8a")
    assert [value for _, value in read_sealed(file)] == [{"step": 1}, {"step": 2}]
    assert len(list(sealed_lines(file))) == 2


OWN_ERRORS = {"models/artifact.py", "models/gguf_import.py", "models/onnx.py", "models/weights.py", "router/router.py"}
"""Readers of what others wrote, and of a file that was just written: each has a sentence of its own for damage."""


def test_one_reader_opens_json_that_limbeck_wrote():
    """A file that is read any other way ends in a traceback when a byte of it changes."""
    package = Path(limbeck.__file__).parent
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"json\.loads?\([^\n]*(read_text|read_bytes|open)\(", file.read_text())
    }
    assert found - {"system/atomic.py"} <= OWN_ERRORS
