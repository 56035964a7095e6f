"""Numbers as a report shows them."""

import pytest

from limbeck.report.format import number, percent, perplexity, signed, times


@pytest.mark.parametrize("value", [None, True, "3", [], float("nan"), float("inf"), 1e300, 10**400])
def test_not_numbers(value):
    assert number(value) is None


def test_units():
    assert perplexity(10.314) == "10.31" and perplexity(4.2e9) == "4.2e+09"
    assert percent(0.7124) == "71.2%" and signed(-0.289, 3) == "\u22120.289" and signed(8.21, 1) == "+8.2"
    assert [times(r) for r in (0.5, 1.37, 12.4)] == ["0.50\u00d7", "1.4\u00d7", "12\u00d7"]
