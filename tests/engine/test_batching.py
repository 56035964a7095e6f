"""Continuous batching: whoever joins and leaves when, each reply is the model's own for its request alone.

Equal means: every token is the most likely one by the model alone, or within 1e-4 of it. Products of another number of
rows are summed in another order, so bits cannot be asked for; the replies that are compared with `generate` are free
of such ties.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Phi3Config

from limbeck.engine import hf_memory, kv_slots
from limbeck.engine.api import Scored
from limbeck.engine.batching import BatchEngine, BatchWorker
from limbeck.engine.hf_memory import TorchMemory, prove
from limbeck.engine.kv_slots import SlotPiece, _split
from limbeck.errors import TeacherError
from limbeck.models.hf import HfLM, attending
from limbeck.models.sampling import TokenDecoder
from limbeck.types import Sampling
from tests import tiny
from tests.serve.models import GREEDY, TIE, assert_greedy, job, logits_TV, prompt, reply, tiny_lm

PAIRS: dict[str, tuple[HfLM, HfLM]] = {}


def pair(family):
    """A model alone, and the same in an engine's hands."""
    if family not in PAIRS:
        tokenizer = tiny.build_tokenizer()
        PAIRS[family] = (tiny_lm(family, tokenizer), tiny_lm(family, tokenizer))
    return PAIRS[family]


def worker(lm, slots=4, most=128):
    return BatchWorker(TorchMemory(lm, slots, most, 2**30), slots)


def run(worker, jobs):
    """All of them to their ends: what each got, and the turns it took."""
    out, left, turns = {each: [] for each in jobs}, set(jobs), 0
    for each in jobs:
        worker.admit(each)
    while left:
        turns += 1
        for each, event in worker.turn():
            out[each].append(event)
            if isinstance(event, Scored) or event.finish_reason:
                left.discard(each)
    return [out[each] for each in jobs], turns


requests = st.lists(
    st.tuples(
        st.integers(0, 12),  # the turn in which it comes
        st.integers(1, 100),  # tokens of its prompt
        st.integers(1, 25),  # tokens of its reply
        st.integers(0, 2),  # which beginning it shares
        st.one_of(st.none(), st.integers(1, 10)),  # turns after which its reader leaves
        st.sampled_from(["write", "write", "draw", "score"]),
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@settings(max_examples=5)
@example(schedule=[(0, 100, 25, 0, None, "write"), *[(1, 3, 20, 1, None, "write")] * 3], rate=100.0)
@given(schedule=requests, rate=st.sampled_from([10.0, 100.0, 5000.0]))
def test_whoever_comes_and_goes_replies_are_the_models_own(family, schedule, rate):
    lm, served = pair(family)
    desk = worker(served)
    try:
        for job, kind, events, left in in_turns(desk, lm, schedule, rate):
            if kind == "score":
                expected = logits_TV(lm, job.ids).log_softmax(-1)[:-1]
                if not left:
                    logp_T = events[0].logp_T[1:]
                    ids_T = torch.from_numpy(job.ids[1:].astype(np.int64))
                    np.testing.assert_allclose(logp_T, expected.gather(1, ids_T[:, None])[:, 0], atol=TIE)
            elif kind == "write" and events:
                assert_greedy(lm, job.ids, events)
            elif events:
                assert_drawn(lm, job, events)
            if not left and kind != "score":
                assert events[-1].finish_reason
    finally:
        desk.close()


def in_turns(desk, lm, schedule, rate):
    waiting = sorted(enumerate(schedule), key=lambda item: item[1][0])
    running, done, turn = {}, [], 0
    while waiting or running:
        desk._rate = rate  # how much of the prompts is read at once is another in each example
        while waiting and waiting[0][1][0] <= turn and len(running) < 4:
            number, (_, length, most, beginning, patience, kind) = waiting.pop(0)
            ids = np.concatenate([prompt(100, beginning)[: length * 2 // 3], prompt(100, 50 + number)])[:length]
            most = min(most, 128 - length)
            sampling = Sampling(temperature=0.0 if kind == "write" else 1.0, max_tokens=most, seed=number)
            new = job(lm, ids, None if kind == "score" else sampling)
            running[new] = (kind, [], turn + patience if patience else None)
            desk.admit(new)
        for each, event in desk.turn() if running else []:
            running[each][1].append(event)
            if isinstance(event, Scored) or event.finish_reason:
                kind, events, _ = running.pop(each)
                done.append((each, kind, events, False))
        turn += 1
        for each in [each for each, (_, _, ends) in running.items() if ends is not None and ends <= turn]:
            kind, events, _ = running.pop(each)
            desk.drop(each)
            done.append((each, kind, events, True))
        assert turn < 2000
    return done


def assert_drawn(lm, job, events):
    """The same draws from the model's own logits. A draw within 1e-4 of a boundary could fall on either side."""
    again = TokenDecoder(lm.tokenizer, job.ids, job.writer.sampling, lm.end_ids)
    ids = np.concatenate([job.ids, [one.id for one in events]]).astype(np.int32)
    rows = logits_TV(lm, ids)[len(job.ids) - 1 : -1].float()
    assert [again.write(row_V).id for row_V in rows] == [one.id for one in events]


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_many_at_once_are_what_generate_writes(family):
    lm, served = pair(family)
    prompts = [prompt(length, seed=length) for length in (1, 40, 3, 90, 17, 8)]
    engine = BatchEngine(served, slots=4)

    async def main():
        async def one(at, ids):
            await asyncio.sleep(at * 0.01)
            return await reply(engine, ids)

        return await asyncio.gather(*(one(at, ids) for at, ids in enumerate(prompts)))

    try:
        outs = asyncio.run(main())
    finally:
        engine.close()
    assert served.model.config._attn_implementation == lm.model.config._attn_implementation
    for ids, written in zip(prompts, outs, strict=True):
        assert [one.id for one in written] == lm.generate([ids], GREEDY)[0][0].ids.tolist()


def test_half_precision_stays_within_its_rounding(tiny_tokenizer):
    lm = HfLM.wrap(tiny.build_model("llama").bfloat16(), tiny_tokenizer, name="llama")
    ids = [prompt(length, length) for length in (5, 30, 64)]
    rows = [logits_TV(lm, each)[len(each) - 1].log_softmax(-1) for each in ids]
    desk = worker(lm)
    outs, _ = run(desk, [job(lm, each) for each in ids])
    desk.close()
    for row_V, written in zip(rows, outs, strict=True):
        assert abs(written[0].logp - float(row_V[written[0].id])) < 0.1
        assert float(row_V.max() - row_V[written[0].id]) < 0.1


@pytest.fixture
def fed(monkeypatch):
    """How many tokens each forward read."""
    sizes = []

    def counted(decoder, ids, plan):
        sizes.append(len(ids))
        return kv_slots.forward(decoder, ids, plan)

    monkeypatch.setattr(hf_memory, "forward", counted)
    return sizes


def test_a_long_prompt_does_not_keep_others_waiting(fed):
    lm, served = pair("llama")
    desk = worker(served)
    fed.clear()  # what proving the model read
    desk._rate = 1.0  # a slow model: 32 tokens a step
    short = job(lm, prompt(4), replace(GREEDY, max_tokens=20))
    desk.admit(short)
    desk.turn()
    fed.clear()
    long = job(lm, prompt(110))
    desk.admit(long)
    steps = 0
    while [each for each, _ in desk.turn()] == [short]:
        steps += 1
        desk._rate = 1.0
    assert max(fed) <= 33 and steps == 3  # 3 x 32 of 110, and the rest with the first token
    desk.close()


def test_short_prompts_are_read_together_and_not_behind_a_long_one(fed):
    lm, served = pair("llama")
    desk = worker(served)
    fed.clear()  # what proving the model read
    desk._rate = 100.0  # 50 tokens a step where nothing is written
    jobs = [job(lm, prompt(100)), *(job(lm, prompt(5, seed)) for seed in (1, 2, 3))]
    for each in jobs:
        desk.admit(each)
    first = desk.turn()
    assert {each for each, _ in first} == set(jobs[1:]) and fed == [50]
    desk.close()


def test_what_stands_in_memory_is_not_read_again(fed):
    lm, served = pair("gemma2")
    desk = worker(served, slots=3)
    fed.clear()  # what proving the model read
    before = prompt(60)
    for tail in (prompt(7, 1), prompt(5, 2), prompt(1, 3)):
        ids = np.concatenate([before, tail])
        (written,), _ = run(desk, [job(lm, ids)])
        assert_greedy(lm, ids, written)
    (written,), _ = run(desk, [job(lm, ids)])  # the very same
    assert_greedy(lm, ids, written)
    assert sum(fed) == 67 + 5 + 1 + 1 + 4 * 11
    # the turn that follows a reply: its tokens stand there as well
    turn = np.concatenate([ids, [one.id for one in written], prompt(4, 4)]).astype(np.int32)
    fed.clear()
    (written,), _ = run(desk, [job(lm, turn)])
    assert_greedy(lm, turn, written)
    assert sum(fed) == 5 + 11  # the reply's last token was never fed
    desk.close()


def test_several_replies_to_one_prompt_read_it_once(fed):
    lm, served = pair("llama")
    desk = worker(served)
    fed.clear()  # what proving the model read
    ids, sampling = prompt(70), Sampling(temperature=1.0, max_tokens=5)
    jobs = [job(lm, ids, sampling, draw_index=index) for index in range(4)]
    outs, _ = run(desk, jobs)
    assert sum(fed) == 70 + 3 + 4 * 4
    for each, written in zip(jobs, outs, strict=True):
        again = TokenDecoder(lm.tokenizer, ids, sampling, lm.end_ids, draw_index=jobs.index(each))
        rows = logits_TV(lm, np.concatenate([ids, [one.id for one in written]]))[69:-1].float()
        assert [again.write(row_V).id for row_V in rows] == [one.id for one in written]
    desk.close()


def test_memory_grows_to_a_bound_and_not_beyond(tiny_tokenizer):
    served = tiny_lm("llama", tiny_tokenizer, max_position_embeddings=1024)
    per_token = prove(served)
    assert per_token == 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, head_dim, bytes
    engine = BatchEngine(served, slots=3, memory_bytes=3 * per_token * 600)
    assert engine.max_context == 600 and engine.stats.most_memory_bytes == 3 * per_token * 600
    assert engine.stats.memory_bytes == 0
    seen = []
    for length in (10, 100, 300, 590, 20):
        asyncio.run(reply(engine, prompt(length), replace(GREEDY, max_tokens=10)))
        seen.append(engine.stats.memory_bytes)
    assert seen == sorted(seen) and seen[0] == 3 * per_token * 128 and seen[-1] == engine.stats.most_memory_bytes
    engine.close()
    assert engine.stats.memory_bytes == 0


def test_a_context_that_does_not_fit_is_refused(tiny_tokenizer):
    served = tiny_lm("llama", tiny_tokenizer)
    with pytest.raises(TeacherError, match=r"200 tokens is not possible for llama.*2 to 128 tokens"):
        BatchEngine(served, max_context=200)
    with pytest.raises(TeacherError, match="room for 10 in each slot"):
        BatchEngine(served, slots=1, max_context=100, memory_bytes=10 * prove(served))


def test_positions_that_depend_on_the_batch_bound_the_context(tiny_tokenizer):
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    sizes = {**tiny.SIZES, "max_position_embeddings": 256, "original_max_position_embeddings": 64}
    model = AutoModelForCausalLM.from_config(Phi3Config(**sizes, rope_scaling=scaling)).eval()
    lm = HfLM.wrap(model, tiny_tokenizer, name="phi3")
    engine = BatchEngine(lm)
    engine.close()
    assert engine.max_context == 64
    with pytest.raises(TeacherError, match="2 to 64 tokens"):
        BatchEngine(lm, max_context=100)


class Mixing(torch.nn.Module):
    """Adds to each token what all tokens of the forward have in common: as a recurrent state would, it sees others."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + hidden.mean(1, keepdim=True)


def test_a_family_that_slots_do_not_reproduce_is_refused_by_name(tiny_tokenizer):
    lm = tiny_lm("qwen2", tiny_tokenizer)
    before = lm.model.config._attn_implementation
    lm.model.model.layers[1].mlp = Mixing(lm.model.model.layers[1].mlp)
    with pytest.raises(TeacherError, match=r"'qwen2' cannot be written in batches.*differ by.*GGUF or ONNX"):
        BatchEngine(lm)
    assert lm.model.config._attn_implementation == before


def test_attention_without_a_plan_is_an_error(tiny_tokenizer):
    lm = tiny_lm("llama", tiny_tokenizer)
    kv_slots.register()
    with attending(lm.model, kv_slots.NAME), pytest.raises(ValueError, match="without a plan"):
        logits_TV(lm, prompt(5))


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=12), st.randoms())
def test_who_attends_together_reads_no_more_than_all_or_none_would(ends, random):
    places = sorted(random.sample(range(16), len(ends)))
    written = [SlotPiece(slot, end - 1, end) for slot, end in zip(places, ends, strict=True)]
    together, alone = _split(written)
    assert sorted([*together, *alone]) == list(range(len(written)))

    def cost(some, others):
        read = (max(places[at] for at in some) + 1) * max(ends[at] for at in some) + kv_slots.CALL if some else 0
        return read + sum(ends[at] + kv_slots.CALL for at in others)

    everybody = list(range(len(written)))
    assert cost(together, alone) <= min(cost(everybody, []), cost([], everybody))
