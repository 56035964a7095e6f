"""What curation kept, as the page shows it; what is missing or malformed leaves gaps."""

from typing import Any

import pytest

from limbeck.report.funnel import funnel


def summary(**changes: Any) -> dict[str, Any]:
    steps = [
        {"number": 1, "rule": "verify", "came": 200, "kept": 150, "reasons": {"wrong": 30, "unknown": 20}},
        {"number": 2, "rule": "length", "came": 150, "kept": 50, "reasons": {"reply longer than 9 characters": 100}},
    ]
    found = {"candidates": 200, "kept": 50, "prompts": 40, "steps": steps, "pass_rate": 0.75, "notes": ["a note"]}
    return {**found, **changes}


def test_a_bar_for_every_rule():
    found = funnel(summary())
    assert found is not None
    assert [(bar.name, bar.kept, bar.width) for bar in found.bars] == [
        ("all replies", "200", 100.0),
        ("verify", "150", 75.0),
        ("length", "50", 25.0),
    ]
    assert found.bars[1].reasons == "30 wrong; 20 unknown"
    assert found.lead.startswith("50 of 200 replies were kept, to 40 prompts. The teacher was right in 75.0%")
    assert found.notes == ("a note",)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"steps": 5},
        {"steps": [3, {"rule": None}, {"kept": "x"}]},
        {"candidates": 0},
        {"kept": None},
        {"notes": 7},
        {"notes": [None, {"a": 1}]},
        {"pass_rate": "half"},
    ],
)
def test_gaps(broken):
    found = funnel(summary(**broken)) if broken else funnel({})
    assert found is None or found.bars[0].name == "all replies"


def test_hostile_reasons_are_spelt_out():
    steps = [{"rule": "\x1b[31m<b>", "came": 2, "kept": 1, "reasons": {"\u202ereason\n" * 50: 1}}]
    found = funnel(summary(steps=steps, notes=["\x1b[2Jnote"]))
    assert found is not None
    assert "\x1b" not in found.bars[1].name + found.notes[0] and "\u202e" not in found.bars[1].reasons
