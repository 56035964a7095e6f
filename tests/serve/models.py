"""What the engines' tests share: tiny models, replies of an engine, and the same replies made one by one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.engine.api import GenerateRequest
from limbeck.engine.scheduler import EngineRequest
from limbeck.models.hf import HfLM
from limbeck.models.sampling import TokenDecoder
from limbeck.types import Sampling
from tests import tiny

if TYPE_CHECKING:
    from limbeck.types import GeneratedToken

TIE = 1e-4  # two logits as close as this may change places with the order of a sum in float32
GREEDY = Sampling(temperature=0.0, max_tokens=12)


def tiny_lm(family: str = "llama", tokenizer: Any = None, **changes: object) -> HfLM:
    return HfLM.wrap(tiny.build_model(family, **changes), tokenizer or tiny.build_tokenizer(), name=family)


def prompt(length: int, seed: int = 0) -> np.ndarray:
    """Random tokens, none of them special."""
    return np.random.default_rng(seed).integers(3, tiny.VOCAB, length).astype(np.int32)


def job(lm: Any, ids: np.ndarray, sampling: Sampling | None = GREEDY, draw_index: int = 0) -> EngineRequest:
    """A request as the desk makes them; its events are looked at here, without a loop."""
    writer = TokenDecoder(lm.tokenizer, ids, sampling, lm.end_ids, draw_index=draw_index) if sampling else None
    return EngineRequest(ids, writer, 0, None)


async def reply(engine: Any, ids: np.ndarray, sampling: Sampling = GREEDY, **more: int) -> list[GeneratedToken]:
    async with contextlib.aclosing(engine.write(GenerateRequest(ids, sampling, **more))) as writing:
        return [one async for one in writing]


def logits_TV(lm: HfLM, ids: np.ndarray) -> torch.Tensor:
    """The model's own logits of one row, in double precision from float32 sums, by transformers alone."""
    with torch.no_grad():
        return lm.model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0].double()


def assert_greedy(lm: HfLM, ids: np.ndarray, written: list[GeneratedToken]) -> None:
    """Each token is the most likely one after the prompt and those before it, by the model alone; ties are allowed."""
    tokens = np.array([one.id for one in written], dtype=np.int32)
    rows = logits_TV(lm, np.concatenate([ids, tokens]))[len(ids) - 1 : -1]
    chosen = rows[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))]
    assert (rows.amax(-1) - chosen).max() < TIE
    logp = rows.log_softmax(-1)[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))]
    np.testing.assert_allclose([one.logp for one in written], logp.numpy(), atol=TIE)


@dataclass(frozen=True)
class Sessions:
    """An HfLM as any model with sessions: each feed reads the whole sequence anew. It counts what is open."""

    lm: HfLM
    counts: dict[str, int]

    @classmethod
    def of(cls, lm: HfLM) -> Sessions:
        return cls(lm, {"opened": 0, "closed": 0})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lm, name)

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        return logits_TV(self.lm, ids)[:, : self.lm.vocab].float()

    def session(self) -> Any:
        self.counts["opened"] += 1
        outer, read = self, []

        class Session:
            def feed(self, ids: np.ndarray) -> torch.Tensor:
                read.extend(int(token) for token in ids)
                return outer.logits(np.array(read))[-1]

            @property
            def token_bytes(self) -> int:
                return 100

            def close(self) -> None:
                outer.counts["closed"] += 1

        return Session()
