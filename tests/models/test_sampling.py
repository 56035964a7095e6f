"""Drawing, turning tokens into text, and ending, against distributions and texts that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.models.sampling import TokenDecoder, draw, write_all, write_one
from limbeck.types import Sampling


class Spelling:
    """A tokenizer of which every token is one byte of UTF-8; 256 ends a reply."""

    def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=False):
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", "replace")


class Parrot:
    """A model that writes the bytes of `text`, whatever it reads, and then the end token."""

    vocab, end_ids, max_context, tokenizer = 257, (256,), None, Spelling()

    def __init__(self, text: str) -> None:
        self.script, self.closed = [*text.encode(), 256], 0

    def session(self):
        outer = self

        class Session:
            def __init__(self) -> None:
                self.at = 0

            def feed(self, ids):
                logits_V = torch.full((257,), -9.0)
                logits_V[outer.script[min(self.at, len(outer.script) - 1)]] = 9.0
                self.at += 1
                return logits_V

            def close(self) -> None:
                outer.closed += 1

        return Session()


PROMPT = np.array([ord("?")], dtype=np.int32)


def written(text: str, **sampling):
    return list(write_one(Parrot(text), PROMPT, Sampling(temperature=0.0, **sampling)))


@given(st.text(min_size=1, max_size=40))
def test_pieces_are_whole_characters_and_together_the_text(text):
    text = text.encode("utf-8", "ignore").decode()
    out = written(text, max_tokens=400)
    assert "".join(one.text for one in out) == text
    assert out[-1].finish_reason == "stop" and out[-1].id == 256
    assert all(one.finish_reason is None for one in out[:-1])


@given(
    st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_text_ends_before_the_first_stop_string(text, stops):
    out = written(text, max_tokens=400, stop=tuple(stops))
    shown = "".join(one.text for one in out)
    # byte by byte, the stop string that is whole first ends the reply
    ends = (
        [min(text.index(stop) + len(stop) for stop in stops if stop in text)] if any(s in text for s in stops) else []
    )
    if not ends:
        assert shown == text
    else:
        begun = min(text.index(stop) for stop in stops if stop in text[: ends[0]])
        assert shown == text[:begun] and len(out) == ends[0] and out[-1].finish_reason == "stop"


def test_a_character_that_is_cut_off_is_shown_as_broken():
    out = written("aé", max_tokens=2)
    assert [one.text for one in out] == ["a", "\ufffd"] and out[-1].finish_reason == "length"


def test_what_was_held_back_for_a_stop_string_comes_at_the_end():
    out = written("one #", max_tokens=5, stop=("##",))
    assert "".join(one.text for one in out) == "one #" and out[-1].finish_reason == "length"


def test_logprobs_are_of_the_model_not_of_the_draw():
    logits_V = torch.tensor([1.0, 3.0, 2.0, -1.0])
    writer = TokenDecoder(Spelling(), PROMPT, Sampling(temperature=3.0, top_p=0.3, seed=1), [], top=2)
    one = writer.write(logits_V)
    expected_V = logits_V.log_softmax(-1)
    assert one.id == 1 and one.logp == pytest.approx(float(expected_V[1]), abs=1e-6)
    assert [index for index, _ in one.top] == [1, 2]
    assert [value for _, value in one.top] == pytest.approx(expected_V[[1, 2]].tolist(), abs=1e-6)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.6)])
def test_draws_follow_the_distribution(temperature, top_p):
    logits_V = torch.tensor([0.3, 2.0, 1.0, -0.5, -3.0])
    wanted_V = (logits_V.double() / temperature).softmax(-1)
    order = wanted_V.argsort(descending=True)
    kept, mass = [], 0.0
    for index in order.tolist():
        if mass >= top_p:
            break
        kept.append(index)
        mass += float(wanted_V[index])
    nucleus_V = torch.zeros(5, dtype=torch.float64)
    nucleus_V[kept] = wanted_V[kept]
    nucleus_V /= nucleus_V.sum()
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    counts_V = torch.bincount(torch.tensor([draw(logits_V, sampling, generator) for _ in range(4000)]), minlength=5)
    assert not counts_V[nucleus_V == 0].any()
    error_V = (counts_V / 4000 - nucleus_V).abs()
    assert (error_V < 4 * (nucleus_V * (1 - nucleus_V) / 4000).sqrt() + 1e-9).all()


def test_a_seed_repeats_and_draws_differ():

    def ids(draw_index: int, seed: int = 5) -> list[int]:
        writer = TokenDecoder(Spelling(), PROMPT, Sampling(seed=seed, max_tokens=20), [], draw_index=draw_index)
        return [writer.write(torch.zeros(256)).id for _ in range(20)]

    assert ids(0) == ids(0) and ids(0) != ids(1) and ids(0) != ids(0, seed=6)


def test_all_replies_and_sessions_that_are_closed():
    model = Parrot("hi")
    replies = write_all(model, [PROMPT, PROMPT], Sampling(temperature=0.0, n=2, max_tokens=9))
    assert [[reply.text for reply in each] for each in replies] == [["hi", "hi"], ["hi", "hi"]]
    assert replies[0][0].finish_reason == "stop" and replies[0][0].ids.tolist() == [*b"hi", 256]
    assert model.closed == 4
    under_way = write_one(model, PROMPT, Sampling(temperature=0.0))
    next(under_way)
    under_way.close()
    assert model.closed == 5
