"""What both engines promise: replies and scores of the model alone, room for others when one leaves, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.engine.api import GenerateRequest
from limbeck.engine.batching import BatchEngine
from limbeck.engine.serial import SerialEngine
from limbeck.errors import DataError, EngineError, EngineFull, LongRow
from limbeck.models.sampling import REPLACEMENT, write_one
from limbeck.types import Sampling
from tests.serve.models import GREEDY, Sessions, assert_greedy, logits_TV, prompt, reply, tiny_lm

LONG = replace(GREEDY, max_tokens=100)
KINDS = ["batch", "serial"]


@pytest.fixture(scope="module")
def lm(tiny_tokenizer):
    """The model alone."""
    return tiny_lm("llama", tiny_tokenizer)


@pytest.fixture(scope="module")
def served(tiny_tokenizer):
    """The same again: an engine has its model to itself."""
    return tiny_lm("llama", tiny_tokenizer)


@pytest.fixture
def engines(served):
    """`engines("batch", slots=2)`: an engine, closed at the end."""
    made = []

    def make(kind, **settings):
        made.append(
            BatchEngine(served, **settings) if kind == "batch" else SerialEngine(Sessions.of(served), **settings)
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


async def until(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never came"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_the_model_alone(kind, lm, engines):
    engine = engines(kind, slots=3)
    prompts = [prompt(length, seed=length) for length in (1, 2, 7, 30, 64, 11)]

    async def main():
        return await asyncio.gather(*(reply(engine, ids, top=3) for ids in prompts))

    for ids, written in zip(prompts, asyncio.run(main()), strict=True):
        assert_greedy(lm, ids, written)
        alone = lm.generate([ids], GREEDY)[0][0]
        assert [one.id for one in written] == alone.ids.tolist()
        if REPLACEMENT not in alone.text:  # random models write broken characters, whose number depends on the pieces
            assert "".join(one.text for one in written) == alone.text
        assert written[-1].finish_reason == alone.finish_reason
        assert all(len(one.top) == 3 and one.top[0][0] == one.id for one in written)
    assert engine.stats.tokens == 6 * 12 and engine.stats.tokens_per_second > 0


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_seed_and_index_alone(kind, lm, engines):
    engine = engines(kind, slots=4)
    sampling = Sampling(temperature=0.9, top_p=0.8, max_tokens=10, seed=3)
    ids = prompt(9)

    async def main():
        company = [reply(engine, prompt(40, seed), replace(sampling, seed=seed)) for seed in range(5)]
        wanted = [reply(engine, ids, sampling, draw_index=index) for index in (0, 1, 0)]
        return (await asyncio.gather(*company, *wanted))[-3:]

    one, other, again = asyncio.run(main())
    assert [w.id for w in one] == [w.id for w in again] != [w.id for w in other]
    for index, written in enumerate((one, other)):
        alone = list(write_one(Sessions.of(lm), ids, sampling, draw_index=index))
        assert [w.id for w in alone] == [w.id for w in written]
        np.testing.assert_allclose([w.logp for w in alone], [w.logp for w in written], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_models_log_softmax(kind, lm, engines):
    engine = engines(kind)

    async def main():
        under_way = asyncio.create_task(reply(engine, prompt(5), LONG))
        scored = [await engine.score(ids, top) for ids, top in ((prompt(100), 2), (prompt(1), 3), (prompt(50), 0))]
        await under_way
        return scored

    for scored, ids, top in zip(asyncio.run(main()), (prompt(100), prompt(1), prompt(50)), (2, 3, 0), strict=True):
        logp_TV = logits_TV(lm, ids).log_softmax(-1)
        expected = logp_TV[:-1].gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None])[:, 0]
        assert scored.logp_T.dtype == np.float32 and np.isnan(scored.logp_T[0]) and len(scored.logp_T) == len(ids)
        np.testing.assert_allclose(scored.logp_T[1:], expected.numpy(), atol=1e-5)
        assert scored.top[0] == () and [len(each) for each in scored.top[1:]] == [top] * (len(ids) - 1)
        for each, logp_V in zip(scored.top[1:], logp_TV, strict=False):
            np.testing.assert_allclose([logp for _, logp in each], logp_V.topk(top).values, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_and_bounds_end_a_reply(kind, lm, engines):
    engine = engines(kind, max_context=40)
    ids = prompt(8)
    whole = asyncio.run(reply(engine, ids, LONG))
    assert len(whole) == 32 and whole[-1].finish_reason == "length"  # the context is full
    text = "".join(one.text for one in whole)
    stop = text[5:8]
    stopped = asyncio.run(reply(engine, ids, replace(LONG, stop=(stop,))))
    assert "".join(one.text for one in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop" and len(stopped) < 32
    one = asyncio.run(reply(engine, ids, replace(LONG, max_tokens=1)))
    assert len(one) == 1 and one[0].finish_reason == "length"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["close", "forget", "cancel"])
def test_who_leaves_frees_a_slot(kind, way, engines):
    engine = engines(kind, slots=1, waiting=1)

    async def main():
        async def read():
            writing = engine.write(GenerateRequest(prompt(5), LONG))
            if way == "cancel":
                async with contextlib.aclosing(writing):
                    await asyncio.sleep(60)
            await anext(writing)
            if way == "close":
                await writing.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(writing)

        reading = asyncio.create_task(read())
        await until(lambda: engine.stats.tokens)
        reading.cancel() if way == "cancel" else await reading
        await until(lambda: not engine.stats.running)
        tokens = engine.stats.tokens
        assert not engine.stats.dead and len(await reply(engine, prompt(3))) == 12
        return tokens

    assert asyncio.run(main()) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_are_told_so_at_once(kind, engines):
    engine = engines(kind, slots=1, waiting=2)

    async def main():
        waiting = [engine.write(GenerateRequest(prompt(5, seed), LONG)) for seed in range(3)]
        with pytest.raises(EngineFull, match="no more than 2 may"):
            engine.write(GenerateRequest(prompt(5), LONG))
        with pytest.raises(EngineFull):
            await engine.score(prompt(5))
        await until(lambda: engine.stats.running == 1)
        assert engine.stats.waiting == 2 and engine.stats.slots == 1
        await waiting[2].aclose()  # one that waits leaves as well
        await until(lambda: engine.stats.waiting < 2)
        await waiting[0].aclose()
        assert [one async for one in waiting[1]][-1].finish_reason

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_cannot_be_served_are_refused_and_harm_nobody(kind, lm, engines):
    engine = engines(kind, max_context=20)

    async def main():
        other = asyncio.create_task(reply(engine, prompt(5)))
        for ids, error, words in (
            (prompt(20), LongRow, "20 tokens, and this engine's context is 20 with the reply"),
            (np.array([], dtype=np.int32), DataError, "without any token"),
            (np.array([5, lm.vocab], dtype=np.int32), DataError, f"knows 0 to {lm.vocab - 1}"),
            (np.array([-1], dtype=np.int32), DataError, "token ids from -1"),
        ):
            with pytest.raises(error, match=words):
                engine.write(GenerateRequest(ids, GREEDY))
        for bad in ({"n": 2}, {"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
            with pytest.raises(DataError, match="one reply"):
                engine.write(GenerateRequest(prompt(3), replace(GREEDY, **bad)))
        assert len((await engine.score(prompt(20))).logp_T) == 20
        with pytest.raises(LongRow):
            await engine.score(prompt(21))
        assert len(await other) == 12

    asyncio.run(main())


class Failing(torch.nn.Module):
    """A layer that raises, or makes NaN, in the forward that has token 7 in it."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how, self.weight = inner, how, inner.weight

    def forward(self, ids):
        hidden = self.inner(ids)
        if self.how == "raise" and (ids == 7).any():
            raise RuntimeError("out of memory, say")
        return torch.where((ids == 7)[..., None], torch.nan, hidden) if self.how == "nan" else hidden


@pytest.fixture
def failing(tiny_tokenizer):
    """`failing("batch", "nan")`: an engine whose model fails on token 7."""
    made = []

    def make(kind, how):
        lm = tiny_lm("qwen2", tiny_tokenizer)  # its head is not its embedding
        engine = BatchEngine(lm) if kind == "batch" else SerialEngine(Sessions.of(lm))
        lm.model.model.embed_tokens = Failing(lm.model.model.embed_tokens, how)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_when_the_model_fails_everybody_hears_of_it(kind, failing):
    engine = failing(kind, "raise")

    async def main():
        good = [asyncio.create_task(reply(engine, prompt(5, seed)[:4], LONG)) for seed in range(3)]
        await until(lambda: engine.stats.running == 3)
        bad = asyncio.create_task(reply(engine, np.array([7], dtype=np.int32), LONG))
        outs = await asyncio.gather(*good, bad, return_exceptions=True)
        assert isinstance(outs[-1], EngineError) and isinstance(outs[-1].__cause__, RuntimeError)
        with pytest.raises(EngineError, match="the model failed.*out of memory, say"):
            engine.write(GenerateRequest(prompt(5), GREEDY))
        with pytest.raises(EngineError):
            await engine.score(prompt(5))
        return outs

    outs = asyncio.run(main())
    assert all(isinstance(out, EngineError) or len(out) for out in outs)
    assert "out of memory, say" in engine.stats.dead and engine.stats.running == engine.stats.waiting == 0


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_no_numbers_end_their_own_request_only(kind, failing):
    engine = failing(kind, "nan")

    async def main():
        good = asyncio.create_task(reply(engine, np.array([9, 10], dtype=np.int32)))
        with pytest.raises(EngineError, match="not finite"):
            await reply(engine, np.array([7, 9], dtype=np.int32))
        out = await asyncio.gather(good, return_exceptions=True)
        assert not engine.stats.dead
        return out[0]

    out = asyncio.run(main())
    assert isinstance(out, EngineError) or len(out)  # the tiny model may write token 7 itself


@pytest.mark.parametrize("kind", KINDS)
def test_closing_ends_what_is_under_way(kind, engines):
    before = set(threading.enumerate())  # engines of other tests' servers
    engine = engines(kind, slots=1)

    async def main():
        tasks = [asyncio.create_task(reply(engine, prompt(5, seed), LONG)) for seed in range(3)]
        await until(lambda: engine.stats.tokens)
        engine.close()
        engine.close()
        outs = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(out, EngineError) and "closed" in str(out) for out in outs)
        with pytest.raises(EngineError, match="closed"):
            engine.write(GenerateRequest(prompt(5), GREEDY))

    asyncio.run(main())
    fresh = set(threading.enumerate()) - before
    assert not any(thread.name.startswith("engine of") and thread.is_alive() for thread in fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_draining_finishes_what_was_accepted(kind, engines):
    engine = engines(kind, slots=1)

    async def main():
        tasks = [asyncio.create_task(reply(engine, prompt(5, seed))) for seed in range(3)]
        await until(lambda: engine.stats.running)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="being closed"):
            engine.write(GenerateRequest(prompt(5), GREEDY))
        await draining
        assert engine.stats.running == engine.stats.waiting == 0
        assert [len(out) for out in await asyncio.gather(*tasks)] == [12, 12, 12]

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_readers_in_several_loops_and_a_loop_that_ends(kind, engines):
    engine = engines(kind, slots=2)
    outs = []

    async def leave():
        writing = engine.write(GenerateRequest(prompt(4), LONG))
        outs.append(writing)  # alive, and its loop is gone
        await anext(writing)

    def run():
        outs.append(len(asyncio.run(reply(engine, prompt(6)))))

    asyncio.run(leave())
    threads = [threading.Thread(target=run) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outs[1:] == [12, 12, 12]
    asyncio.run(until(lambda: not engine.stats.running))


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_reader_gets_everything(kind, engines):
    engine = engines(kind)

    async def main():
        writing = engine.write(GenerateRequest(prompt(5), GREEDY))
        await until(lambda: engine.stats.tokens == 12)
        return [one async for one in writing]

    assert len(asyncio.run(main())) == 12
