"""Writing a reply token by token: drawing, turning tokens into text, ending. What every engine shares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import TeacherError
from limbeck.types import GeneratedToken, Reply, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from limbeck.types import LocalLM

REPLACEMENT = "\ufffd"
CONTEXT = 4
"""Tokens of the prompt that are decoded before a reply: how a token is spelt can depend on those before it."""
MOST_PARTS = 4
"""Tokens that one character can take: an incomplete one is shown as it is after that."""
NUCLEUS = 256
"""Most likely tokens among which the nucleus is looked for first; sorting a whole vocabulary takes far longer."""


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token: the most likely one at temperature 0, else a draw from the nucleus `top_p` at `temperature`.

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p (Holtzman et al., arXiv 1904.09751);
    of equally likely ones those of the lowest ids. Draws depend on `generator` and these logits alone, whatever else is
    being written.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs_V = (logits_V.double() / sampling.temperature).softmax(-1)
    at = torch.rand((), generator=generator, dtype=torch.float64)
    if sampling.top_p == 1:
        return _place(probs_V, at)
    order_K, probs_K = _nucleus(logits_V, probs_V, sampling.top_p)
    return int(order_K[_place(probs_K, at)])


def _place(probs_K: Tensor, at: Tensor) -> int:
    """Where the share `at` of the mass lies; never at a token without any."""
    mass_K = probs_K.cumsum(-1)
    place = int(torch.searchsorted(mass_K, at * mass_K[-1], right=True))
    return place if place < len(mass_K) else int(probs_K.nonzero()[-1])


def _nucleus(logits_V: Tensor, probs_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the nucleus, the most likely first: exactly those of a stable sort of all."""
    num = NUCLEUS
    while num < len(probs_V):
        candidates_K = logits_V.topk(num).indices.sort().values  # ids in order, so that the next sort keeps it
        sorted_K, order_K = probs_V[candidates_K].sort(descending=True, stable=True)
        size = _size(sorted_K, top_p)
        # a token outside may be as likely as the last candidate: then the candidates are not known to be the right ones
        if size < num and sorted_K[size - 1] > sorted_K[-1]:
            return candidates_K[order_K[:size]], sorted_K[:size]
        num *= 8
    sorted_V, order_V = probs_V.sort(descending=True, stable=True)
    size = _size(sorted_V, top_p)
    return order_V[:size], sorted_V[:size]


def _size(sorted_K: Tensor, top_p: float) -> int:
    """How many of these have less than top_p before them."""
    before_K = sorted_K.cumsum(-1) - sorted_K
    return int((before_K < top_p).sum())


class TokenDecoder:
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

    def write(self, logits_V: Tensor) -> GeneratedToken:
        """Draw the next token from logits_V (fp32) and say what it adds."""
        return write_rows([self], logits_V[None])[0]

    def draw(self, logits_V: Tensor) -> int:
        return draw(logits_V, self.sampling, self._generator)

    def say(self, token: int, logp: float, top: tuple[tuple[int, float], ...]) -> GeneratedToken:
        """What a token that was drawn adds."""
        self.num += 1
        ended = token in self.end_ids
        text, stopped = self._stops.push("" if ended else self._characters.push(token))
        reason = "stop" if ended or stopped else "length" if self.num >= self.sampling.max_tokens else None
        if reason and not stopped:
            rest, stopped = self._stops.push(self._characters.rest())
            text += rest if stopped else rest + self._stops.held
        return GeneratedToken(token, text, logp, top, reason)


def write_rows(writers: Sequence[TokenDecoder], logits_NV: Tensor) -> list[GeneratedToken]:
    """The next token of each reply, from its own row of logits_NV (fp32). Rows do not touch one another. Raises
    TeacherError for logits that are not numbers: nothing can be drawn from them."""
    norm_N = logits_NV.logsumexp(-1)
    if not bool(norm_N.isfinite().all()):
        raise TeacherError(
            "the model's logits are not finite numbers, so no reply can be drawn. Open it in another type (bfloat16 or "
            "float32). If float32 has them too, its weights are damaged."
        )
    tokens = _draws(writers, logits_NV)
    picked_N = logits_NV.gather(1, torch.tensor(tokens, device=logits_NV.device)[:, None])[:, 0]
    logps = (picked_N - norm_N).tolist()
    tops = _tops(writers, logits_NV, norm_N)
    rows = zip(writers, tokens, logps, tops, strict=True)
    return [writer.say(token, logp, top) for writer, token, logp, top in rows]


def _draws(writers: Sequence[TokenDecoder], logits_NV: Tensor) -> list[int]:
    best = logits_NV.argmax(-1).tolist()
    rows = enumerate(writers)
    return [best[row] if writer.sampling.temperature == 0 else writer.draw(logits_NV[row]) for row, writer in rows]


def _tops(writers: Sequence[TokenDecoder], logits_NV: Tensor, norm_N: Tensor) -> list[tuple[tuple[int, float], ...]]:
    """The (id, log-prob) of the most likely tokens of each row, as many as its writer hands out."""
    out: list[tuple[tuple[int, float], ...]] = [()] * len(writers)
    rows = [row for row, writer in enumerate(writers) if writer.top]
    if not rows:
        return out
    most = min(max(writers[row].top for row in rows), logits_NV.shape[1])
    best = logits_NV[rows].topk(most)
    logp = (best.values - norm_N[rows][:, None]).tolist()
    for row, ids, values in zip(rows, best.indices.tolist(), logp, strict=True):
        out[row] = tuple(zip(ids, values, strict=True))[: writers[row].top]
    return out


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
    lm: LocalLM, prompt: np.ndarray, sampling: Sampling, *, draw_index: int = 0, top: int = 0
) -> Iterator[GeneratedToken]:
    """One reply of a model that has sessions, token by token. Closing the iterator ends it."""
    writer = TokenDecoder(lm.tokenizer, prompt, sampling, lm.end_ids, draw_index=draw_index, top=top)
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


def write_all(lm: LocalLM, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
    """`LM.generate` for a model that has sessions: one reply after the other."""
    one = replace(sampling, n=1)
    return [
        [reply_of(list(write_one(lm, prompt, one, draw_index=index))) for index in range(sampling.n)]
        for prompt in prompts
    ]


def reply_of(written: Sequence[GeneratedToken]) -> Reply:
    """The tokens of one reply, put together."""
    ids = np.array([one.id for one in written], dtype=np.int32)
    return Reply(ids, "".join(one.text for one in written), written[-1].finish_reason or "length")
