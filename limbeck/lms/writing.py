"""Writing a reply token by token: drawing, turning tokens into text, ending. What every engine shares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.types import Reply, Sampling, Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from limbeck.types import LiveLM

REPLACEMENT = "\ufffd"
CONTEXT = 4
"""Tokens of the prompt that are decoded before a reply: how a token is spelt can depend on those before it."""
MOST_PARTS = 4
"""Tokens that one character can take: an incomplete one is shown as it is after that."""


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token: the most likely one at temperature 0, else a draw from the nucleus `top_p` at `temperature`.

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p (Holtzman et al., arXiv 1904.09751).
    Draws depend on `generator` and these logits alone, whatever else is being written.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs_V = (logits_V.double() / sampling.temperature).softmax(-1)
    at = torch.rand((), generator=generator, dtype=torch.float64)
    if sampling.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        probs_V = torch.where(before_V < sampling.top_p, sorted_V, 0.0)
    else:
        order_V = torch.arange(len(probs_V))
    mass_V = probs_V.cumsum(-1)
    place = int(torch.searchsorted(mass_V, at * mass_V[-1], right=True))
    return int(order_V[min(place, int(probs_V.nonzero()[-1]))])


class Writer:
    """One reply under way: give it the logits of each next token until what it returns has a finish reason.

    `draw_index` tells apart the several replies to one prompt; `top` most likely tokens are handed out with each token.
    Text holds neither special tokens nor a stop string, nor what follows one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: np.ndarray,
        sampling: Sampling,
        end_ids: Sequence[int],
        *,
        draw_index: int = 0,
        top: int = 0,
    ) -> None:
        self.sampling, self.end_ids, self.top, self.num = sampling, frozenset(end_ids), top, 0
        self._generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + draw_index) % 2**63)
        self._characters = _Characters(tokenizer, prompt)
        self._stops = _Stops(sampling.stop)

    def write(self, logits_V: Tensor) -> Written:
        """Draw the next token from logits_V (fp32) and say what it adds."""
        token = draw(logits_V, self.sampling, self._generator)
        logp_V = logits_V - logits_V.logsumexp(-1)
        best = logp_V.topk(min(self.top, len(logp_V)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self.num += 1
        ended = token in self.end_ids
        text, stopped = self._stops.push("" if ended else self._characters.push(token))
        reason = "stop" if ended or stopped else "length" if self.num >= self.sampling.max_tokens else None
        if reason and not stopped:
            rest, stopped = self._stops.push(self._characters.rest())
            text += rest if stopped else rest + self._stops.held
        return Written(token, text, float(logp_V[token]), top, reason)


class _Characters:
    """Tokens to text, a piece as soon as its characters are whole. A bounded number of tokens is decoded each time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: np.ndarray) -> None:
        self._tokenizer = tokenizer
        self._shown = [int(token) for token in prompt[-CONTEXT:]]  # their text is known to the reader
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        self._waiting.append(token)
        new = self._new()
        if new.endswith(REPLACEMENT) and len(self._waiting) < MOST_PARTS:
            return ""
        self._shown = [*self._shown, *self._waiting][-CONTEXT:]
        self._waiting = []
        return new

    def rest(self) -> str:
        """The characters that never became whole."""
        return self._new() if self._waiting else ""

    def _new(self) -> str:
        before = self._decode(self._shown)
        return self._decode([*self._shown, *self._waiting])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Stops:
    """Text up to a stop string. What may be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self.held = stops, ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain, and whether a stop string has come."""
        text = self.held + text
        places = [text.index(stop) for stop in self._stops if stop in text]
        if places:
            self.held = ""
            return text[: min(places)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def write_one(
    lm: LiveLM, prompt: np.ndarray, sampling: Sampling, *, draw_index: int = 0, top: int = 0
) -> Iterator[Written]:
    """One reply of a model that has sessions, token by token. Closing the iterator ends it."""
    writer = Writer(lm.tokenizer, prompt, sampling, lm.end_ids, draw_index=draw_index, top=top)
    session = lm.session()
    try:
        logits_V = session.feed(prompt)
        while True:
            written = writer.write(logits_V)
            yield written
            if written.finish_reason:
                return
            logits_V = session.feed(np.array([written.id], dtype=np.int32))
    finally:
        session.close()


def write_all(lm: LiveLM, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
    """`LM.generate` for a model that has sessions: one reply after the other."""
    out: list[list[Reply]] = []
    for prompt in prompts:
        replies = []
        for index in range(sampling.n):
            written = list(write_one(lm, prompt, replace(sampling, n=1), draw_index=index))
            ids = np.array([one.id for one in written], dtype=np.int32)
            replies.append(Reply(ids, "".join(one.text for one in written), written[-1].finish_reason or "length"))
        out.append(replies)
    return out
