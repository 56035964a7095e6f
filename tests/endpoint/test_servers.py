"""The probe and the targets against real servers: vLLM tells all, `transformers serve` ignores much and says 200 OK."""

import asyncio
import os
from dataclasses import replace

import pytest
import torch

from limbeck.data import row_id
from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.probe import probe
from limbeck.label.preflight import keep_record, missing, prepare
from limbeck.label.recorders import reader_of
from limbeck.label.remote import run_ask
from limbeck.losses.chunked import iter_logits
from limbeck.models.open import open_lm
from limbeck.recipe import OpenAITeacher
from limbeck.text.encode import Encoder, Example
from limbeck.text.packing import labels_of, pack
from limbeck.types import Callbacks, Row
from tests import tiny
from tests.endpoint.servers import VLLM_PYTHON, transformers_serve, vllm
from tests.recipes import tiny_recipe

needs_vllm = pytest.mark.skipif(not os.environ.get(VLLM_PYTHON), reason=f"{VLLM_PYTHON} names no interpreter with vLLM")
K = 8


def look(url, model, tokenizer, **settings):
    teacher = OpenAITeacher(base_url=url, model=model, api_key_env=None, **settings)

    async def go():
        async with open_endpoint(teacher) as endpoint:
            return await probe(endpoint, reader_of(tokenizer, tiny.END))

    return asyncio.run(go())


# ---- transformers serve ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_transformers_serve_ignores_log_probs_and_is_found_out(tiny_folder, tiny_tokenizer, tmp_path):
    folder = tiny_folder("llama", max_position_embeddings=512)
    with transformers_serve(folder, tmp_path / "log") as url:
        found = look(url, str(folder), tiny_tokenizer)
    assert found.logprobs == 0 and found.tokens == "unknown" and not found.scores
    assert not found.echo and not found.prompt_logprobs and not found.json_schema and not found.n
    assert found.prompt_tokens and found.requests
    top_k = tiny_recipe(
        "teacher={kind: openai, model: m}", "trace.mode.kind=generate", "trace.target={kind: top_k, k: 5}",
        "student={kind: pretrained, path: x}",
    )  # fmt: skip
    assert any("tells no log-probs" in problem.message for problem in missing(top_k, found))


# ---- vLLM ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tiny_folder, tmp_path_factory):
    """A random model with head_dim 64 (vLLM on the CPU has no kernel for 16), served by vLLM: (folder, URL)."""
    if not os.environ.get(VLLM_PYTHON):
        pytest.skip(f"{VLLM_PYTHON} names no interpreter with vLLM")
    folder = tiny_folder("llama", head_dim=64, initializer_range=0.05)
    with vllm(folder, tmp_path_factory.mktemp("vllm") / "log") as url:
        yield folder, url


def rows_of(tokenizer, examples, *, reply):
    encoder = Encoder(tokenizer, max_length=64, need_reply=reply)
    rows = []
    for number, example in enumerate(examples):
        made = encoder.encode(replace(example, source=f"x:{number}"))
        asked = encoder.asked(example)
        rows.append(Row(row_id(made.text), "train", "", made.text, made.ids, made.spans, f"x:{number}", asked))
    return rows


def label(served, tmp_path, rows, tokenizer, *overrides):
    """The store that the recipe makes of the rows, and what was said meanwhile."""
    folder, url = served
    said = []
    recipe = tiny_recipe(
        f"teacher={{kind: vllm, base_url: '{url}', model: teacher}}", f"student={{kind: pretrained, path: '{folder}'}}",
        f"trace.target={{kind: top_k, k: {K}}}", *overrides,
    )  # fmt: skip
    keeping, record = prepare(recipe, [tmp_path / "traces"], tokenizer, said.append)
    keep_record(recipe, tmp_path / "traces", record)
    callbacks = Callbacks(lambda progress: None, said.append, lambda: False)
    made = {}
    # Supports as they were before eight bits were made of them.
    make = keeping.make

    def spy(row, answers):
        made[row.id] = answers
        return make(row, answers)

    return run_ask(recipe, tmp_path / "traces", replace(keeping, make=spy), rows, callbacks), made


def own_logp(folder, traces):
    """Log-probs of the model itself at the supervised positions: fp32, one row per position."""
    lm = open_lm(folder, dtype="float32")
    hidden_ND = lm.hidden(pack(traces))
    return torch.log_softmax(torch.cat([z.clone() for _, z in iter_logits(hidden_ND, lm.head)]), 1)


def told(answers, first):
    """(position, id, log-prob) of all that the server told, from position `first` on."""
    for place, token in enumerate(answers[0].choice.tokens):
        for one in (token, *token.top):
            yield first + place, one.id, one.logp


@needs_vllm
@pytest.mark.slow
def test_the_probe_sees_all_of_vllm(served, tiny_tokenizer):
    found = look(served[1], "teacher", tiny_tokenizer)
    for name in ("raw", "same_text", "samples", "n", "seed", "echo", "token_prompts", "prompt_logprobs"):
        assert getattr(found, name) is True, name
    assert found.token_ids and found.refuses_unknown_model and found.completions
    assert found.logprobs == 20 and found.prompt == "agree" and found.steady


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("written", [True, False])
def test_supports_of_vllm_are_those_of_our_own_forward(served, tiny_tokenizer, tmp_path, written):
    """Replies that it wrote at temperature 1.3, and text that it was given: every number that it tells is the raw
    log-prob of our own forward, and the store holds the same tokens."""
    if written:
        rows = rows_of(tiny_tokenizer, [Example(prompt=row["text"]) for row in tiny.rows(6)], reply=False)
        mode = ["trace.mode={kind: generate, temperature: 1.3, max_tokens: 12, n: 2}"]
    else:
        examples = [Example(messages=chat["messages"]) for chat in tiny.chats(6)]
        rows, mode = rows_of(tiny_tokenizer, examples, reply=True), []
    store, answers = label(served, tmp_path, rows, tiny_tokenizer, *mode)
    traces = store.traces()
    assert len(traces) == len(rows) * (1 + written)
    logp = own_logp(served[0], traces).split([trace.num_supervised for trace in traces])
    worst, cells = 0.0, 0
    for trace, own in zip(traces, logp, strict=True):
        (said,) = [one for one in answers[trace.row_id] if one.draw == trace.meta.get("draw", 0)]
        positions = [p for start, end in trace.spans for p in range(start, end)]
        first = trace.spans[0][0]
        for position, index, value in told([said], first):
            if position in positions:
                worst = max(worst, abs(own[positions.index(position), index].item() - value))
                cells += 1
        dist = store.dist(trace)
        top = own.topk(K).indices
        for n, label_id in enumerate(labels_of(trace)):
            kept = {i for i in dist.ids_NK[n].tolist() if i >= 0}
            assert int(label_id) in kept
            # vLLM counts a sampled token that is not among the k as one of them.
            assert len(kept & set(top[n].tolist())) >= K - 1
        if written:
            assert trace.meta["hard"] == 0
    assert cells > 50 and worst < 2e-3, f"{cells} log-probs differ by up to {worst}"
    print(f"{cells} log-probs of vLLM differ from our own forward by at most {worst:.1e} nats")
