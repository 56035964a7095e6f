"""Batches in llama.cpp: whoever joins and leaves when, tokens are those of the file's own logits; memory grows and is
carried over. Keys and values have 16 bits there, so logits are equal to about 0.02."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from limbeck.engine.api import GenerateRequest, Scored
from limbeck.engine.batching import BatchEngine, BatchWorker
from limbeck.engine.llama_memory import ROOM, LlamaMemory
from limbeck.errors import TeacherError
from limbeck.export.gguf import write_gguf
from limbeck.models.llamacpp import LlamaLM
from limbeck.types import Sampling
from tests import tiny
from tests.export import gguf_models as small
from tests.serve.models import GREEDY, job, reply

if TYPE_CHECKING:
    from limbeck.engine.scheduler import EngineRequest
    from limbeck.types import GeneratedToken

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gguf", "cyllama")),
    reason="the packages of limbeck[export,llamacpp] are not installed",
)
NEAR = 0.03


@pytest.fixture(scope="module", params=["llama", "gemma2"])  # Gemma has windows of 8 tokens in every other layer
def lm(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LlamaLM:
    folder = tmp_path_factory.mktemp(request.param)
    write_gguf(folder, small.build(request.param, max_position_embeddings=1024), quant="f32")
    return LlamaLM.open(folder)


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, tiny.VOCAB, length).astype(np.int32)


def worker(lm: LlamaLM, slots: int = 4) -> BatchWorker:
    return BatchWorker(LlamaMemory(lm, slots, 1024, 2**30), slots)


def run(desk: BatchWorker, jobs: dict[EngineRequest, int]) -> dict[EngineRequest, list[Any]]:
    """All of them to their ends; each comes in the turn that is its number."""
    out: dict[EngineRequest, list[Any]] = {each: [] for each in jobs}
    waiting, running, turn = dict(jobs), set(), 0
    while waiting or running:
        for each in [each for each, comes in waiting.items() if comes <= turn]:
            del waiting[each]
            running.add(each)
            desk.admit(each)
        for each, event in desk.turn() if running else []:
            out[each].append(event)
            if isinstance(event, Scored) or event.finish_reason:
                running.discard(each)
        turn += 1
    return out


def assert_greedy(lm: LlamaLM, ids: np.ndarray, written: list[GeneratedToken]) -> None:
    """Each token is the most likely one by the file's own logits of that text, or near it."""
    tokens = np.array([one.id for one in written], dtype=np.int32)
    rows_TV = lm.logits(np.concatenate([ids, tokens]))[len(ids) - 1 : -1]
    for row_V, one in zip(rows_TV, written, strict=True):
        assert row_V.max() - row_V[one.id] < NEAR
        assert abs(one.logp - float(row_V.log_softmax(-1)[one.id])) < NEAR


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each computation read."""
    sizes: list[int] = []
    compute = LlamaLM.compute

    def counted(self: LlamaLM, context: Any, tokens: list[Any]) -> None:
        sizes.append(len(tokens))
        compute(self, context, tokens)

    monkeypatch.setattr(LlamaLM, "compute", counted)
    return sizes


def test_whoever_comes_and_goes_replies_are_the_files_own(lm: LlamaLM) -> None:
    desk = worker(lm)
    lengths = {3: 0, 90: 0, 1: 1, 400: 2, 40: 9, 17: 12}
    jobs = {job(lm, prompt(length, length), replace(GREEDY, max_tokens=15)): comes for length, comes in lengths.items()}
    scored = job(lm, prompt(70, 5), None)
    out = run(desk, {**dict(list(jobs.items())[:3]), scored: 1})  # four slots
    out |= run(desk, dict(list(jobs.items())[3:]))
    desk.close()
    for each in jobs:
        assert len(out[each]) == 15
        assert_greedy(lm, each.ids, out[each])
    logp_TV = lm.logits(scored.ids).log_softmax(-1)
    expected = [float(logp_TV[at, token]) for at, token in enumerate(scored.ids[1:])]
    np.testing.assert_allclose(out[scored][0].logp_T[1:], expected, atol=NEAR)


def test_draws_are_those_of_the_reply_alone(lm: LlamaLM) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=3)
    jobs = {job(lm, prompt(20), sampling, draw_index=index): 0 for index in range(4)}
    desk = worker(lm)
    out = run(desk, jobs)
    desk.close()
    replies = [[one.id for one in written] for written in out.values()]
    assert len({tuple(ids) for ids in replies}) == 4
    alone = lm.generate([prompt(20)], replace(sampling, n=4))[0]
    same = sum(ids == reply.ids.tolist() for ids, reply in zip(replies, alone, strict=True))
    assert same >= 3  # a draw at a boundary may fall on either side


def test_memory_grows_and_what_was_read_is_carried_over(lm: LlamaLM, fed: list[int]) -> None:
    desk = worker(lm, slots=2)
    long = job(lm, prompt(250), replace(GREEDY, max_tokens=60))
    short = job(lm, prompt(30, 1), replace(GREEDY, max_tokens=60))
    fed.clear()
    out = run(desk, {long: 0, short: 3})
    assert sum(fed) == 250 + 30 + 2 * 59  # nothing is read twice
    taken, most = desk.memory
    assert taken == most // 1024 * 2 * ROOM and most > 0
    desk.close()
    assert desk.memory[0] == 0
    assert_greedy(lm, long.ids, out[long])
    assert_greedy(lm, short.ids, out[short])


def test_the_turn_that_follows_is_read_from_where_it_differs(lm: LlamaLM, fed: list[int]) -> None:
    desk = worker(lm, slots=2)
    first = job(lm, prompt(60))
    written = run(desk, {first: 0})[first]
    fed.clear()
    turn = np.concatenate([first.ids, [one.id for one in written], prompt(4, 4)]).astype(np.int32)
    second = job(lm, turn)
    written = run(desk, {second: 0})[second]
    assert sum(fed) == 5 + 11  # the reply's last token was never fed
    assert_greedy(lm, turn, written)
    fed.clear()
    other = job(lm, np.concatenate([turn[:40], prompt(9, 8)]).astype(np.int32))
    written = run(desk, {other: 0})[other]
    assert sum(fed) == 9 + 11
    assert_greedy(lm, other.ids, written)
    desk.close()


def test_a_slot_that_is_left_is_clean_for_the_next(lm: LlamaLM) -> None:
    desk = worker(lm, slots=1)
    left = job(lm, prompt(50))
    desk.admit(left)
    desk.turn()
    desk.drop(left)
    following = job(lm, prompt(20, 7))
    assert_greedy(lm, following.ids, run(desk, {following: 0})[following])
    desk.close()


def test_the_engine(lm: LlamaLM) -> None:
    engine = BatchEngine(lm, slots=4)
    prompts = [prompt(length, length) for length in (5, 30, 12, 60, 8, 44)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(reply(engine, ids) for ids in prompts), engine.score(prompts[0]))

    *outs, scored = asyncio.run(main())
    assert engine.max_context == 1024 and scored.logp_T.shape == (5,)
    for ids, written in zip(prompts, outs, strict=True):
        assert_greedy(lm, ids, written)
    engine.close()


def test_a_bound_of_memory_cuts_the_context(lm: LlamaLM) -> None:
    whole = LlamaMemory(lm, 2, None, 2**30)
    half = LlamaMemory(lm, 2, None, whole.most_bytes // 2 + 100)
    assert (whole.most, half.most) == (1024, 512) and half.most_bytes <= whole.most_bytes // 2 + 100
    with pytest.raises(TeacherError, match="room for 0 in each slot"):
        BatchEngine(lm, slots=2, memory_bytes=1000)
    with pytest.raises(TeacherError, match=r"2,000 tokens is not possible.*2 to 1,024"):
        BatchEngine(lm, max_context=2000)


def test_a_reply_that_ends_at_the_context(lm: LlamaLM) -> None:
    engine = BatchEngine(lm, slots=2, max_context=70)

    async def main() -> list[GeneratedToken]:
        return [one async for one in engine.write(GenerateRequest(prompt(60), replace(GREEDY, max_tokens=100)))]

    written = asyncio.run(main())
    assert len(written) == 10 and written[-1].finish_reason == "length"
    engine.close()
