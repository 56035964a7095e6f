"""Numbers as people read them, and sizes as they write them."""

import pytest

from limbeck.system.units import count, duration, num_bytes, size


def test_numbers():
    assert [duration(s) for s in (0.44, 12.3, 59.7, 185, 7800)] == [
        "0.4 s",
        "12 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
    assert [size(n) for n in (5, 2048, 150 * 2**20, 3 * 2**30, 5 * 2**40)] == [
        "5 B",
        "2.0 KiB",
        "150 MiB",
        "3.0 GiB",
        "5.0 TiB",
    ]
    assert [count(n) for n in (812, 17_000_000, 1.5e9)] == ["812", "17.0M", "1.5B"]


def test_units():
    assert [duration(s) for s in (0.44, 12.3, 185, 7800)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 10 min"]
    assert [size(b) for b in (812, 2048, 257 * 2**20, 2**41)] == ["812 B", "2.0 KiB", "257 MiB", "2.0 TiB"]
    assert [count(n) for n in (812, 1535, 134_515_008, 2.5e9)] == ["812", "1.5k", "134.5M", "2.5B"]


def test_sizes_as_they_are_written():
    written = ("1000", "500M", "2GiB", "1.5 g", "64kb", "1T", "7 B")
    assert [num_bytes(text) for text in written] == [
        1000,
        500 * 2**20,
        2 * 2**30,
        1.5 * 2**30,
        64 * 2**10,
        2**40,
        7,
    ]
    for text in ("", "much", "-1G", "1X", "1GG", "1.G"):
        with pytest.raises(ValueError, match="is no size, such as 500M"):
            num_bytes(text)
