"""The table of exports on the page: numbers, foreign text escaped, nothing taken for granted."""

import pytest

from limbeck.report.export_table import MISSING, export_table

ONE = {
    "format": "gguf",
    "quant": "q8_0",
    "kl": 0.00498,
    "kl_bound": 0.02,
    "agreement": 0.958,
    "bytes": 145_000_000,
    "source_bytes": 290_000_000,
    "tokens_per_second": 77.7,
    "source_tokens_per_second": 15.3,
    "positions": 858,
    "text": "held-out rows",
}


def test_a_row_of_figures():
    table = export_table([ONE, {**ONE, "quant": "f16"}])
    assert table is not None
    assert table.rows[0] == ("gguf q8_0", ("0.005", "0.02", "95.8%", "138 MiB (50.0%)", "77.7 (student 15.3)"))
    assert [name for name, _ in table.rows] == ["gguf q8_0", "gguf f16"]
    assert "on 858 positions of held-out rows" in table.note


@pytest.mark.parametrize("exports", [None, [], {}, "x", [3], [None]])
def test_nothing_to_show(exports):
    assert export_table(exports) is None


def test_what_is_damaged_leaves_gaps():
    table = export_table([{"format": "\x1b[2J", "kl": "NaN", "bytes": -1, "source_bytes": 0}])
    assert table is not None
    assert table.rows[0][1] == (MISSING,) * 5 and "\x1b" not in table.rows[0][0]
