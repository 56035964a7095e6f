"""Sessions in turns: any model that has them, one token each, and every session is closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from limbeck.engine import serial
from limbeck.engine.api import GenerateRequest
from limbeck.engine.serial import SerialEngine, SerialWorker
from limbeck.errors import EngineError, TeacherError
from limbeck.models.sampling import write_one
from limbeck.types import Sampling
from tests.serve.models import GREEDY, Sessions, job, prompt, reply, tiny_lm


@pytest.fixture(scope="module")
def lm(tiny_tokenizer):
    return tiny_lm("gpt2", tiny_tokenizer)


def test_turns_are_equal_to_each_reply_alone(lm):
    model = Sessions.of(lm)
    engine = SerialEngine(model, slots=2)
    prompts = [prompt(length, length) for length in (3, 20, 1, 9)]
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=1)

    async def main():
        return await asyncio.gather(*(reply(engine, ids, sampling, top=2) for ids in prompts))

    outs = asyncio.run(main())
    engine.close()
    assert outs == [list(write_one(Sessions.of(lm), ids, sampling, top=2)) for ids in prompts]
    assert model.counts == {"opened": 5, "closed": 5}  # one to see that there are sessions


def test_one_token_each_in_turns(lm):
    desk = SerialWorker(Sessions.of(lm), 100, 1)
    jobs = [job(lm, prompt(3, seed)) for seed in range(3)]
    for each in jobs:
        desk.admit(each)
    order = [jobs.index(each) for _ in range(9) for each, _ in desk.turn()]
    assert order == [0, 1, 2] * 3
    desk.close()


def test_a_long_prompt_is_read_in_pieces_between_the_others_tokens(lm, monkeypatch):
    monkeypatch.setattr(serial, "PIECE", 20)
    model = Sessions.of(lm)
    desk = SerialWorker(model, 100, 1)
    short, long = job(lm, prompt(3)), job(lm, prompt(70))
    desk.admit(short)
    desk.turn()
    desk.admit(long)
    events = [event for _ in range(8) for event in desk.turn()]
    assert [each is short for each, _ in events] == [True, True, True, True, False]  # 20, 20, 20 and 10 tokens
    alone = next(write_one(Sessions.of(lm), long.ids, GREEDY))
    assert events[-1][1] == alone
    desk.close()
    assert model.counts == {"opened": 2, "closed": 2}


def test_sessions_of_those_who_leave_are_closed(lm):
    model = Sessions.of(lm)
    engine = SerialEngine(model, slots=1)

    async def main():
        writing = engine.write(GenerateRequest(prompt(4), replace(GREEDY, max_tokens=100)))
        await anext(writing)
        await writing.aclose()
        await reply(engine, prompt(2))

    asyncio.run(main())
    assert model.counts == {"opened": 3, "closed": 3}
    engine.close()


def test_what_a_session_refuses_ends_its_own_request(lm, monkeypatch):
    model = Sessions.of(lm)
    engine = SerialEngine(model, slots=3)
    session = Sessions.session

    def refuse(self):
        if self.counts["opened"] == 2:
            self.counts["opened"] += 1
            raise TeacherError("no memory for one more sequence")
        return session(self)

    monkeypatch.setattr(Sessions, "session", refuse)

    async def main():
        return await asyncio.gather(*(reply(engine, prompt(3, seed)) for seed in range(3)), return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert len(first) == len(third) == 12
    assert isinstance(second, EngineError) and "no memory for one more" in str(second)
    assert not engine.stats.dead
    engine.close()


def test_a_model_without_sessions_or_room_is_refused(lm, monkeypatch):
    with pytest.raises(TeacherError, match=r"500 tokens is not possible for gpt2: here it can have 2 to 128"):
        SerialEngine(Sessions.of(lm), max_context=500)

    def refuse(self):
        raise TeacherError("this kind of model cannot write token by token")

    monkeypatch.setattr(Sessions, "session", refuse)
    with pytest.raises(TeacherError, match="token by token"):
        SerialEngine(Sessions.of(lm))


def test_memory_is_bounded_and_counted(lm):
    """100 bytes a token, two slots: 5,000 bytes hold 25 tokens of each."""
    engine = SerialEngine(Sessions.of(lm), slots=2, memory_bytes=5_000)
    assert engine.max_context == 25 and engine.stats.most_memory_bytes == 5_000
    assert len(asyncio.run(reply(engine, prompt(20), replace(GREEDY, max_tokens=100)))) == 5
    engine.close()
    worker = SerialWorker(Sessions.of(lm), 50, 100)
    first, second = job(lm, prompt(6)), job(lm, prompt(3))
    for each in (first, second):
        worker.admit(each)
    for _ in range(4):
        worker.turn()
    assert worker.memory == ((6 + 3 + 2) * 100, 5_000)
    worker.drop(first)
    assert worker.memory == (4 * 100, 5_000)
    worker.close()
    assert worker.memory[0] == 0
    with pytest.raises(TeacherError, match=r"room for 1 in each slot. Ask for a shorter context, fewer slots, or more"):
        SerialEngine(Sessions.of(lm), slots=2, memory_bytes=200)
