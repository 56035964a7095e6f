"""Continuous batching: one forward per step for all replies under way, whoever joined when.

Each step feeds the next token of every reply and, within a bound, pieces of prompts: a long prompt does not keep the
others waiting, and short ones are read together. A finished reply leaves at once. A prompt that begins as one that
stands in memory already (a system prompt, the turns before) is read from where they differ.

Tokens are those that the model writes for the request alone, up to rounding: the products of a batch are summed in
another order than those of a single row, so logits differ by the precision of their dtype (about 1e-5 in float32), and
where two tokens are as close as that, either may be chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.api import Scored
from limbeck.engine.hf_memory import TorchMemory
from limbeck.engine.llama_memory import LlamaMemory
from limbeck.engine.memory import Logits, Memory, SlotTokens
from limbeck.engine.scheduler import MEMORY, EngineEvent, EngineRequest, EngineThread
from limbeck.errors import EngineError
from limbeck.models.llamacpp import LlamaLM
from limbeck.models.sampling import write_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from limbeck.models.hf import HfLM

STALL_SECONDS = 0.1  # what pieces of prompts may add to a step in which replies are written
ALONE_SECONDS = 0.5  # what a step of prompts alone may take: so long does a newcomer wait for his turn
LEAST, SURE, MOST = 32, 128, 512  # tokens of prompts in a step; as many tell how fast they are read
REUSE = 16  # tokens of a beginning that are worth a copy


class BatchEngine(EngineThread):
    """An engine for a model of transformers or a GGUF file in llama.cpp. `slots` replies are written at a time,
    `waiting` requests wait, and prompt and reply have `max_context` tokens together: the model's own bound by default.

    Keys and values take `memory_bytes` at most; where the default context would take more, it is cut to what fits.
    Memory grows with the longest sequence. While it lives the model is its own: nobody else can use it. Raises
    TeacherError for families whose logits slots do not reproduce (that is measured, not assumed), and for a
    `max_context` that does not fit.
    """

    def __init__(
        self,
        lm: HfLM | LlamaLM,
        *,
        slots: int = 8,
        max_context: int | None = None,
        waiting: int = 64,
        memory_bytes: int = MEMORY,
    ) -> None:
        if isinstance(lm, LlamaLM):
            memory: Memory = LlamaMemory(lm, slots, max_context, memory_bytes)
        else:
            memory = TorchMemory(lm, slots, max_context, memory_bytes)
        super().__init__(lm, BatchWorker(memory, slots), slots=slots, max_context=memory.most, most_waiting=waiting)


@dataclass(eq=False)
class _Sequence:
    """`ids` so far; the first `fed` of them stand in memory, once it has `begun`. `logp` and `top` are collected for
    jobs that score."""

    job: EngineRequest
    slot: int
    ids: list[int]
    fed: int = 0
    begun: bool = False
    logp: list[float] = field(default_factory=lambda: [float("nan")])
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=lambda: [()])

    @property
    def left(self) -> int:
        return len(self.ids) - self.fed

    @property
    def scores(self) -> bool:
        return self.job.writer is None


class BatchWorker:
    """The model's side of it. Used by one thread only."""

    def __init__(self, memory: Memory, slots: int) -> None:
        self._memory = memory
        self._held: list[list[int]] = [[] for _ in range(slots)]  # what stands in slots that nobody writes to
        self._sequences: dict[EngineRequest, _Sequence] = {}
        self._rate = LEAST / STALL_SECONDS  # tokens of prompts a second, as last seen

    @property
    def memory(self) -> tuple[int, int]:
        return self._memory.bytes, self._memory.most_bytes

    def close(self) -> None:
        self._memory.close()

    def admit(self, job: EngineRequest) -> None:
        ids = [int(token) for token in job.ids]
        taken = {sequence.slot for sequence in self._sequences.values()}
        # That with the same beginning; else the lowest: those that are written together are best side by side.
        common = {slot: _common(ids, self._held[slot]) for slot in range(len(self._held)) if slot not in taken}
        slot = max(common, key=lambda slot: (common[slot] if common[slot] >= REUSE and job.writer else 0, -slot))
        self._sequences[job] = _Sequence(job, slot, ids)

    def drop(self, job: EngineRequest) -> None:
        sequence = self._sequences.pop(job)
        if sequence.begun:
            self._held[sequence.slot] = sequence.ids[: sequence.fed]

    def _begin(self, sequence: _Sequence) -> bool:
        """Take over what stands in memory of the same beginning. False while more of it is being read for another."""
        begun = [each for each in self._sequences.values() if each.begun]
        reused, source = 0, sequence.slot
        if not sequence.scores:  # which needs every row's logits
            standing = {sequence.slot: self._held[sequence.slot]}
            if self._memory.copies:
                standing |= {**dict(enumerate(self._held)), **{each.slot: each.ids[: each.fed] for each in begun}}
            common = {slot: _common(sequence.ids, ids) for slot, ids in standing.items()}
            source = max(common, key=lambda slot: (common[slot], slot == sequence.slot))
            reused = min(common[source], len(sequence.ids) - 1)  # the last one is fed: its row predicts
            reading = [each for each in begun if each.left > 1 and self._memory.copies]
            if max((_common(sequence.ids[:-1], each.ids) for each in reading), default=0) >= reused + REUSE:
                return False
        sequence.fed = self._memory.keep(source, sequence.slot, reused if reused >= REUSE else 0)
        sequence.begun = True
        self._held[sequence.slot] = []
        return True

    def turn(self) -> list[tuple[EngineRequest, EngineEvent]]:
        begun = time.perf_counter()
        with torch.inference_mode():  # what it writes to memory was made in it, and can be changed in it only
            written, pieces = self._plan()
            events = self._read(written, pieces)
        num = sum(num for _, num in pieces)
        if num >= LEAST:
            rate = num / (time.perf_counter() - begun)
            self._rate = rate if num >= SURE else max(rate, self._rate)  # few tokens are read slowly
        for job, event in events:
            if isinstance(event, Exception | Scored) or event.finish_reason:
                self.drop(job)
        return events

    def _plan(self) -> tuple[list[_Sequence], list[tuple[_Sequence, int]]]:
        """Who gets the next token, and how much of whose prompt is read: the shortest first, and each a fair share."""
        ready = [each for each in self._sequences.values() if each.begun or self._begin(each)]
        sequences = sorted(ready, key=lambda sequence: sequence.slot)
        written = [sequence for sequence in sequences if sequence.left == 1 and not sequence.scores]
        reading = sorted((each for each in sequences if each not in written), key=lambda sequence: sequence.left)
        seconds = STALL_SECONDS if written else ALONE_SECONDS
        budget = min(max(int(self._rate * seconds), LEAST), MOST)
        pieces = []
        for index, sequence in enumerate(reading):
            num = min(sequence.left, max(budget // (len(reading) - index), 1))
            budget -= num
            pieces.append((sequence, num))
        return written, pieces

    def _read(
        self, written: list[_Sequence], pieces: list[tuple[_Sequence, int]]
    ) -> list[tuple[EngineRequest, EngineEvent]]:
        """Everyone's next tokens are read; what that brought: tokens drawn, and log-probs of those that were given."""
        parts = [*((sequence, 1) for sequence in written), *pieces]
        drawing = {}  # who draws, and behind which of the tokens
        scoring, at = [], 0  # who scores, how much of it, and behind which
        for sequence, num in parts:
            if sequence.scores:
                scoring.append((sequence, num, range(at, at + min(num, sequence.left - 1))))  # what a token follows
            elif sequence.left == num:
                drawing[sequence] = at + num - 1
            at += num
        fed = [SlotTokens(one.slot, one.fed, one.ids[one.fed : one.fed + num]) for one, num in parts]
        rows = [*drawing.values(), *(row for _, _, some in scoring for row in some)]
        logits = self._memory.read(fed, len(written), rows)
        for sequence, num in parts:
            sequence.fed += num
        events, at = self._written(list(drawing), logits), len(drawing)
        for sequence, num, some in scoring:
            events += self._scored(sequence, num, logits(slice(at, at + len(some))) if some else ())
            at += len(some)
        return events

    def _written(self, sequences: list[_Sequence], logits: Logits) -> list[tuple[EngineRequest, EngineEvent]]:
        """The next token of every reply whose prompt is read; theirs are the first rows of logits."""
        if not sequences:
            return []
        blocks = [logits_nV.clone() for _, logits_nV in logits(slice(0, len(sequences)))]
        logits_NV = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        good = logits_NV.amax(-1).isfinite()
        if not bool(good.all()):
            return self._broken(sequences, logits_NV, good.tolist())
        return self._drawn(sequences, logits_NV)

    def _drawn(self, sequences: list[_Sequence], logits_NV: Tensor) -> list[tuple[EngineRequest, EngineEvent]]:
        writers = [sequence.job.writer for sequence in sequences if sequence.job.writer]
        events: list[tuple[EngineRequest, EngineEvent]] = []
        for sequence, one in zip(sequences, write_rows(writers, logits_NV), strict=True):
            sequence.ids.append(one.id)
            events.append((sequence.job, one))
        return events

    def _broken(
        self, sequences: list[_Sequence], logits_NV: Tensor, good: list[bool]
    ) -> list[tuple[EngineRequest, EngineEvent]]:
        """Logits that are no numbers end the request that they belong to, and no other."""
        error = EngineError("the model's logits are not finite; nothing can be drawn from them.")
        whole = [row for row, is_good in enumerate(good) if is_good]
        events = self._drawn([sequences[row] for row in whole], logits_NV[whole]) if whole else []
        return [*events, *((sequences[row].job, error) for row, is_good in enumerate(good) if not is_good)]

    def _scored(
        self, sequence: _Sequence, num: int, blocks: Iterable[tuple[slice, Tensor]]
    ) -> list[tuple[EngineRequest, EngineEvent]]:
        """Log-probs of the tokens that follow the `num` just read, for a request that scores."""
        first = sequence.fed - num + 1
        for part, logits_nV in blocks:
            logp_nV = logits_nV.log_softmax(-1)
            ids_n = torch.tensor(sequence.ids[first + part.start : first + part.stop], device=logp_nV.device)
            sequence.logp += logp_nV.gather(1, ids_n[:, None])[:, 0].tolist()
            best = logp_nV.topk(min(sequence.job.top, logp_nV.shape[1]))
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            sequence.top += [tuple(zip(ids, values, strict=True)) for ids, values in rows]
        if sequence.left:
            return []
        return [(sequence.job, Scored(np.array(sequence.logp, dtype=np.float32), tuple(sequence.top)))]


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    num = min(len(left), len(right))
    if left[:num] == right[:num]:
        return num
    return next(at for at in range(num) if left[at] != right[at])
