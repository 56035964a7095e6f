"""The report stage: one file, written whole, from files alone."""

import pytest

from limbeck.errors import RunDirError
from limbeck.report.page import run_report
from tests.report.fake import make_run


def test_writes_the_page_and_nothing_else(tmp_path):
    make_run(tmp_path, steps=5)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    page = run_report(tmp_path)
    assert page == tmp_path / "report.html" and page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {page}
    first = page.read_bytes()
    assert run_report(tmp_path).read_bytes() == first


def test_no_run_folder(tmp_path):
    with pytest.raises(RunDirError, match="not a run folder"):
        run_report(tmp_path / "nowhere")
