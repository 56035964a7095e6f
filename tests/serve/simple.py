"""The plainest engine: no batching, no cache; every token is one forward of everything before it."""

from __future__ import annotations

import asyncio

import numpy as np
import torch

from limbeck.errors import EngineError
from limbeck.lms.writing import Writer
from limbeck.serve.engine import Scored, Stats


class SimpleEngine:
    def __init__(self, lm, slots=8):
        self.lm, self.slots, self.running, self.tokens, self.dead = lm, slots, 0, 0, ""
        self.closed = False

    @property
    def max_context(self):
        return self.lm.max_context

    @property
    def stats(self):
        return Stats(self.running, 0, self.slots, self.tokens, 0.0, 0, 0, self.dead)

    def _logits(self, ids):
        with torch.no_grad():
            return self.lm.model(torch.tensor([list(map(int, ids))])).logits[0, :, : self.lm.vocab].float()

    async def write(self, ask):
        if self.closed:
            raise EngineError("it is closed")
        self.running += 1
        try:
            writer = Writer(
                self.lm.tokenizer, ask.ids, ask.sampling, self.lm.end_ids, draw_index=ask.draw_index, top=ask.top
            )
            ids = list(ask.ids)
            while True:
                written = writer.write(self._logits(ids)[-1])
                self.tokens += 1
                yield written
                if written.finish_reason:
                    return
                ids.append(written.id)
                await asyncio.sleep(0)
        finally:
            self.running -= 1

    async def score(self, ids, top=0):
        logp_TV = self._logits(ids).log_softmax(-1)
        logp, tops = [float("nan")], [()]
        for t in range(1, len(ids)):
            row = logp_TV[t - 1]
            best = row.topk(top)
            logp.append(float(row[int(ids[t])]))
            tops.append(tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        return Scored(np.array(logp, dtype=np.float32), tuple(tops))

    async def drain(self):
        pass

    def close(self):
        self.closed = True
