"""An engine for models that run one sequence at a time: onnxruntime, whatever has sessions.

Each reply under way has a session; they take turns, one token each, and prompts are read a piece per turn. What
batching gives is missing here: eight replies take eight times as long as one.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.engine.api import Scored
from limbeck.engine.memory import context_within, token_bytes_of
from limbeck.engine.scheduler import FALLBACK_CONTEXT, MEMORY, EngineEvent, EngineRequest, EngineThread
from limbeck.errors import EngineError, LimbeckError

if TYPE_CHECKING:
    from limbeck.models.sampling import TokenDecoder
    from limbeck.types import LocalLM, Session

logger = logging.getLogger(__name__)

PIECE = 128  # tokens of a prompt that are read in one turn


class SerialEngine(EngineThread):
    """As `BatchEngine` for any model with sessions; `slots` of them are open at a time.

    Raises TeacherError for models without. What a session refuses ends its own request, and no other.
    """

    def __init__(
        self,
        lm: LocalLM,
        *,
        slots: int = 4,
        max_context: int | None = None,
        waiting: int = 64,
        memory_bytes: int = MEMORY,
    ) -> None:
        token_bytes = token_bytes_of(lm)
        own = lm.max_context or max_context or FALLBACK_CONTEXT
        most = context_within(lm.name, max_context, own, memory_bytes // (slots * token_bytes))
        worker = SerialWorker(lm, slots * most, token_bytes)
        super().__init__(lm, worker, slots=slots, max_context=most, most_waiting=waiting)


@dataclass(eq=False)
class _SerialTurn:
    """A job and its session, once it was `fed` some tokens. `unread` are those that were not fed yet."""

    job: EngineRequest
    unread: np.ndarray
    session: Session | None = None
    fed: int = 0


class SerialWorker:
    """The model's side of it. Used by one thread only."""

    def __init__(self, lm: LocalLM, most_tokens: int, token_bytes: int) -> None:
        self._lm, self._most_bytes, self._token_bytes = lm, most_tokens * token_bytes, token_bytes
        self._turns: deque[_SerialTurn] = deque()
        self._held = 0  # tokens in sessions: a number that other threads may read

    @property
    def memory(self) -> tuple[int, int]:
        """What is held now is counted by tokens; what a library sets aside for the next ones comes on top."""
        return self._held * self._token_bytes, self._most_bytes

    def admit(self, job: EngineRequest) -> None:
        self._turns.append(_SerialTurn(job, job.ids))

    def drop(self, job: EngineRequest) -> None:
        for turn in [turn for turn in self._turns if turn.job is job]:
            self._turns.remove(turn)
            if turn.session is not None:
                turn.session.close()
                self._held -= turn.fed

    def close(self) -> None:
        for turn in list(self._turns):
            self.drop(turn.job)

    def turn(self) -> list[tuple[EngineRequest, EngineEvent]]:
        turn = self._turns[0]
        self._turns.rotate(-1)
        try:
            event = self._feed(turn, turn.job.writer) if turn.job.writer else self._score(turn.job)
        except LimbeckError as error:  # no memory for one more session, say
            logger.info("a request is ended: %s", error)
            event = EngineError(str(error))
        if event is None:
            return []
        if isinstance(event, Exception | Scored) or event.finish_reason:
            self.drop(turn.job)
        return [(turn.job, event)]

    def _feed(self, turn: _SerialTurn, writer: TokenDecoder) -> EngineEvent | None:
        if turn.session is None:
            turn.session = self._lm.session()
        piece, turn.unread = turn.unread[:PIECE], turn.unread[PIECE:]
        logits_V = turn.session.feed(piece)
        turn.fed, self._held = turn.fed + len(piece), self._held + len(piece)
        if len(turn.unread):
            return None
        if not bool(logits_V.amax().isfinite()):
            return EngineError("the model's logits are not finite; nothing can be drawn from them.")
        written = writer.write(logits_V)
        turn.unread = np.array([written.id], dtype=np.int32)
        return written

    def _score(self, job: EngineRequest) -> Scored:
        logp_TV = self._lm.logits(job.ids)[:-1].log_softmax(-1)
        ids_T = torch.from_numpy(job.ids[1:].astype(np.int64))
        logp_T = np.concatenate([[np.nan], logp_TV.gather(1, ids_T[:, None])[:, 0].numpy()]).astype(np.float32)
        best = logp_TV.topk(min(job.top, logp_TV.shape[1]))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Scored(logp_T, ((), *(tuple(zip(ids, values, strict=True)) for ids, values in rows)))
