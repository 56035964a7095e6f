"""What writes replies for many clients at once, whatever runs the model.

An engine owns one model in one thread of its own. Requests come from an event loop, wait for a slot, and get their
tokens as they are drawn. What a reply says depends on its request alone: its ids, sampling and `draw_index`, not on
who else is written for at the time (but for rounding: see `batch.py`).

    async with contextlib.aclosing(engine.write(Ask(ids, sampling))) as written:
        async for one in written:
            ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    from limbeck.types import GeneratedToken, Sampling


@dataclass(frozen=True)
class GenerateRequest:
    """One reply that is wanted. `ids` (int32 [T], at least one) are the prompt's tokens.

    `sampling.n` must be 1: several replies to one prompt are several asks with `draw_index` 0, 1, ... The `top` most
    likely tokens are handed out with each token. An engine refuses prompts that leave no room for a token, and ends a
    reply at its own context ("length") where `max_tokens` would go beyond it.
    """

    ids: np.ndarray
    sampling: Sampling
    draw_index: int = 0
    top: int = 0


class Scored(NamedTuple):
    """Log-probs of given tokens: `logp_T[t]` (fp32, nats) of ids[t] after ids[:t]; the first is NaN: nothing comes
    before it. `top[t]` are the (id, log-prob) of the most likely tokens there, as many as asked for; `top[0]` is ()."""

    logp_T: np.ndarray
    top: tuple[tuple[tuple[int, float], ...], ...]


class Stats(NamedTuple):
    """What an engine is doing. `running` requests hold one of `slots`, `waiting` ones do not yet. `tokens` were written
    since it began; `tokens_per_second` is of the last seconds, 0 when idle. `memory_bytes` is what sequences take now,
    `most_memory_bytes` what they can take (both without weights; 0 where the model's library does not say). `dead` says
    why it writes no more, "" while it does."""

    running: int
    waiting: int
    slots: int
    tokens: int
    tokens_per_second: float
    memory_bytes: int
    most_memory_bytes: int
    dead: str


class Writing(Protocol):
    """A reply under way: iterate for its tokens. `aclose` ends it, and its slot is free at the next step."""

    def __aiter__(self) -> Writing: ...

    async def __anext__(self) -> GeneratedToken: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """`BatchEngine` for HfLM and LlamaLM, `SerialEngine` for any LocalLM. Methods are called from event loops, in any
    thread."""

    @property
    def stats(self) -> Stats: ...

    @property
    def max_context(self) -> int:
        """Tokens of prompt and reply together, at most."""
        ...

    def write(self, ask: GenerateRequest) -> Writing:
        """One reply, token by token, until one has a finish reason.

        Raises at once, before any token: LongRow where the prompt does not fit, DataError for tokens that the model
        does not have, EngineFull where too many wait, EngineError where the engine is closed or dead. Iterating raises
        EngineError when the model fails or the engine is closed meanwhile.
        """
        ...

    async def score(self, ids: np.ndarray, top: int = 0) -> Scored:
        """Log-probs of tokens that are given: what `echo` with log-probs shows. Raises as `write` does."""
        ...

    async def drain(self) -> None:
        """Take no new requests and return when all those accepted are done."""
        ...

    def close(self) -> None:
        """End at once, and wait for the thread; requests under way get EngineError. Idempotent."""
        ...
