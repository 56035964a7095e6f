"""Records are of the module that makes them, cost nothing when nobody looks, and say what happened."""

import ast
import asyncio
import logging

import pytest

from limbeck.data.build import DataSummary
from limbeck.endpoint.rate_limit import Throttle
from limbeck.system.atomic import sweep
from limbeck.system.jsonl import LineFile, read_values
from limbeck.system.rundir import RunDir
from tests.test_words import FILES, PACKAGE

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
OTHERS = {"limbeck", "math_verify", "lm_eval"}
"""Loggers that are named otherwise: the package's, and those of libraries that are kept quiet."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_records_are_lazy_and_of_their_module(path):
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        words = ast.unparse(call.func)
        if words == "logging.getLogger" and call.args:
            name = ast.unparse(call.args[0])
            assert name in ("__name__", "name", *map(repr, OTHERS)), f"{path}:{call.lineno} names a logger {name}"
        if words.startswith("logger.") and words.removeprefix("logger.") in LEVELS:
            text = call.args[0]
            assert isinstance(text, ast.Constant), f"{path}:{call.lineno} formats a record that nobody may want"
            assert text.value.count("%") >= len(call.args) - 1, f"{path}:{call.lineno} has a value without a place"
            assert "exc_info" not in {word.arg for word in call.keywords}, f"{path}:{call.lineno} may quote a prompt"


def test_what_a_killed_writer_left(tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    (tmp_path / ".model.x.tmp").mkdir()
    (tmp_path / ".model.y.old" / "replaced").mkdir(parents=True)
    sweep(tmp_path, "model")
    said = [record.getMessage() for record in caplog.records]
    assert any("the old one is put back" in text for text in said) and any(".model.x.tmp" in text for text in said)
    caplog.clear()
    sweep(tmp_path, "model")
    assert not caplog.records, "nothing to do is nothing to say"


def test_a_damaged_record_of_a_stage(tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "label.json").write_text("{")
    assert RunDir(tmp_path).record("label") is None
    (record,) = caplog.records
    assert "label.json is damaged" in record.getMessage() and record.name == "limbeck.system.sealed"


def test_rows_that_are_left_out(caplog):
    caplog.set_level(logging.DEBUG, "limbeck")
    DataSummary().on_bad("notes.jsonl:7: no text")
    assert caplog.records[0].getMessage() == "a row is left out: notes.jsonl:7: no text"


def test_an_overloaded_endpoint(caplog):
    caplog.set_level(logging.INFO, "limbeck")

    async def work():
        throttle = Throttle(8)
        throttle.overloaded(asyncio.get_running_loop().time(), 3.0)

    asyncio.run(work())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the endpoint is overloaded: at most 4 requests in flight",
        "nothing is sent for 3.0 s, as the endpoint wishes",
    ]


def test_lines_that_were_cut(tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    file = tmp_path / "failures.jsonl"
    file.write_text('{"shard": 0}\n{"sh\n{"sha')
    assert list(read_values(file)) == [{"shard": 0}]
    LineFile.open(file).close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: a line that is no JSON is skipped",
        f"{file}: half a line at its end is removed",
    ]
