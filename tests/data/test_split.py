from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.split import Sample, row_id, split_of
from limbeck.types import Row


def row(text: str) -> Row:
    return Row(row_id(text), "train", "", text, np.zeros(2, np.int32), ((1, 2),), "f")


def sample(texts: list[str], limit: int | None, seed: int = 0) -> set[str]:
    chosen = Sample(limit, seed)
    for text in texts:
        chosen.add(row(text))
    return {one.text for one in chosen.rows()}


texts = st.lists(st.text(max_size=5), max_size=40, unique=True)


def test_id_is_of_the_text() -> None:
    assert row_id("é") == hashlib.sha256("é".encode()).hexdigest()[:16]


def test_share_held_out() -> None:
    ids = [row_id(str(number)) for number in range(4000)]
    for share in (0.1, 0.5, 0.9):
        held = sum(split_of(id, share) == "heldout" for id in ids)
        assert abs(held / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert split_of("0" * 16, 1e-9) == "heldout" and split_of("f" * 16, 0.999) == "train"


@given(st.text(), st.floats(0.01, 0.98), st.floats(0, 0.01))
def test_a_larger_share_keeps_what_was_held_out(text: str, share: float, more: float) -> None:
    if split_of(row_id(text), share) == "heldout":
        assert split_of(row_id(text), share + more) == "heldout"


@settings(deadline=None)
@given(texts, st.integers(1, 20), st.integers(0, 5), st.randoms())
def test_a_sample_depends_on_seed_and_contents_only(
    texts: list[str], limit: int, seed: int, random: np.random.Generator
) -> None:
    mixed = list(texts)
    random.shuffle(mixed)  # type: ignore[arg-type]
    chosen = sample(texts, limit, seed)
    assert chosen == sample(mixed, limit, seed)
    assert len(chosen) == min(limit, len(texts)) and chosen <= set(texts)
    assert chosen <= sample(texts, limit + 1, seed)


def test_rows_come_in_the_order_they_were_added() -> None:
    chosen = Sample(50, 3)
    for number in range(200):
        chosen.add(row(str(number)))
    numbers = [int(one.text) for one in chosen.rows()]
    assert numbers == sorted(numbers) and len(numbers) == 50 and chosen.added == 200
    assert len(chosen._heap) == 50  # memory is bounded by the limit


def test_another_seed_chooses_others() -> None:
    names = [str(number) for number in range(200)]
    assert sample(names, 50, 0) != sample(names, 50, 1)
    assert sample(names, None) == set(names)
