"""An engine for models that run one sequence at a time: llama.cpp, onnxruntime, whatever has sessions.

Each reply under way has a session; they take turns, one token each, and prompts are read a piece per turn. What
batching gives is missing here: eight replies take eight times as long as one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import EngineError
from limbeck.serve.desk import Desk, Event, Job
from limbeck.serve.engine import Scored

if TYPE_CHECKING:
    from limbeck.types import LiveLM, Session

PIECE = 128  # tokens of a prompt that are read in one turn
FALLBACK_CONTEXT = 2048  # for models that do not say


class SerialEngine(Desk):
    """As `BatchEngine` for any model with sessions; `slots` of them are open at a time."""

    def __init__(self, lm: LiveLM, *, slots: int = 4, max_context: int | None = None, waiting: int = 64) -> None:
        most = min(max_context or 2**31, lm.max_context or max_context or FALLBACK_CONTEXT)
        super().__init__(lm, SerialWorker(lm), slots=slots, max_context=most, most_waiting=waiting)


@dataclass(eq=False)
class _Turn:
    """A job with its session; None for jobs that score. `unread` are the tokens that it was not fed yet."""

    job: Job
    session: Session | None
    unread: np.ndarray


class SerialWorker:
    def __init__(self, lm: LiveLM) -> None:
        self._lm = lm
        self._turns: deque[_Turn] = deque()

    @property
    def memory(self) -> tuple[int, int]:
        return 0, 0  # sessions do not say

    def admit(self, job: Job) -> None:
        session = self._lm.session() if job.writer else None
        self._turns.append(_Turn(job, session, job.ids))

    def drop(self, job: Job) -> None:
        for turn in [turn for turn in self._turns if turn.job is job]:
            self._turns.remove(turn)
            if turn.session is not None:
                turn.session.close()

    def close(self) -> None:
        for turn in list(self._turns):
            self.drop(turn.job)

    def turn(self) -> list[tuple[Job, Event]]:
        turn = self._turns[0]
        self._turns.rotate(-1)
        event = self._score(turn.job) if turn.session is None else self._feed(turn, turn.session)
        if event is None:
            return []
        if isinstance(event, Exception | Scored) or event.finish_reason:
            self.drop(turn.job)
        return [(turn.job, event)]

    def _feed(self, turn: _Turn, session: Session) -> Event | None:
        piece, turn.unread = turn.unread[:PIECE], turn.unread[PIECE:]
        logits_V = session.feed(piece)
        if len(turn.unread) or turn.job.writer is None:
            return None
        if not bool(logits_V.amax().isfinite()):
            return EngineError("the model's logits are not finite; nothing can be drawn from them.")
        written = turn.job.writer.write(logits_V)
        turn.unread = np.array([written.id], dtype=np.int32)
        return written

    def _score(self, job: Job) -> Scored:
        logp_TV = self._lm.logits(job.ids)[:-1].log_softmax(-1)
        ids_T = torch.from_numpy(job.ids[1:].astype(np.int64))
        logp_T = np.concatenate([[np.nan], logp_TV.gather(1, ids_T[:, None])[:, 0].numpy()]).astype(np.float32)
        best = logp_TV.topk(min(job.top, logp_TV.shape[1]))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Scored(logp_T, ((), *(tuple(zip(ids, values, strict=True)) for ids, values in rows)))
