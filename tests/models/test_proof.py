"""The proof that a model is read as it reads itself: beyond windows and bounds, in any company, in any precision."""

import numpy as np
import pytest
import torch

from limbeck.errors import TeacherError
from limbeck.losses import iter_logits
from limbeck.models import proof
from limbeck.models.hf import HfLM, head_of, packed_attention, packed_hidden, refuse_unsupported
from limbeck.models.rotary import length_bound
from limbeck.text.packing import pack
from limbeck.types import Row, Sampling
from tests import tiny
from tests.models import families

READ = (
    "mistral", "phi3", "phi3-window", "llama-dynamic", "phimoe", "qwen2-moe", "mixtral", "gemma3", "cohere2", "olmo3",
    "afmoe", "jetmoe", "ernie-moe",
)  # fmt: skip


def _rows(*lengths):
    draw = np.random.default_rng(1)
    return [Row(str(n), "train", "", "", draw.integers(3, 380, n).astype(np.int32), ((1, n),), "x") for n in lengths]


def _packed(model, rows):
    with torch.no_grad(), packed_attention(model):
        return torch.cat([z.clone() for _, z in iter_logits(packed_hidden(model, pack(rows)), head_of(model))])


def _alone(model, rows):
    with torch.no_grad():
        return torch.cat([proof.own_logits(model, row) for row in rows])


@pytest.mark.parametrize("name", READ)
def test_documents_are_read_as_alone_beyond_every_window_and_bound(name):
    model = families.build(name)
    refuse_unsupported(model)
    rows = _rows(40, 7, 70)
    torch.testing.assert_close(_packed(model, rows), _alone(model, rows), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", READ)
def test_half_precision_is_no_reason_to_refuse(name, dtype):
    refuse_unsupported(families.build(name).to(dtype))


@pytest.mark.parametrize("name", READ)
def test_the_proof_leaves_the_model_as_it_was(name):
    model = families.build(name)
    rows = _rows(40, 7)
    before, config = _alone(model, rows), model.config.to_dict()
    refuse_unsupported(model)
    assert torch.equal(_alone(model, rows), before) and model.config.to_dict() == config


@pytest.mark.parametrize("name", ["gpt-oss", "llama4", "gpt-neo"])
def test_what_attends_in_ways_of_its_own_is_refused_by_name(name):
    """Sinks; chunks, in a class whose decoder is the whole model; attention that cannot be replaced."""
    with pytest.raises(TeacherError, match="the model family"):
        refuse_unsupported(families.build(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_that_go_on_into_the_next_document_are_refused_in_any_precision(dtype):
    with pytest.raises(TeacherError, match="'mamba'"):
        refuse_unsupported(families.build("mamba").to(dtype))


def test_a_document_says_the_same_beside_a_long_one_and_a_short_one():
    """Frequencies that are chosen by the longest sequence of a forward are chosen for each document."""
    for name in ("phi3", "llama-dynamic"):
        model = families.build(name)
        short, long = _rows(12, 60)
        alone, beside = _packed(model, [short]), _packed(model, [long, short, long])[59:70]
        torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)
        assert length_bound(model.config) == 32
    assert length_bound(families.build("mistral").config) is None


def _windowed_by_itself(model, window):
    """As if its own pass saw no further back than `window`, by code that nothing outside can reach."""
    real = model.forward

    def forward(input_ids, **passed):
        out = real(input_ids, **passed)
        out.logits[:, window:] = out.logits[:, window:].roll(1, -1)
        return out

    model.forward = forward


def test_a_window_that_stands_in_no_number_is_proven_at_its_own_length(tiny_model):
    """In a model with such a window single rows are wrong, not many: no mean would show it."""
    model = tiny_model("llama")
    model.config.sliding_window = 40
    refuse_unsupported(model)  # a number that means nothing
    _windowed_by_itself(model, 40)
    with pytest.raises(TeacherError, match="its logits differ"):
        refuse_unsupported(model)


def test_windows_that_no_layer_has_cost_nothing(tiny_model, monkeypatch):
    model = tiny_model("llama")
    model.config.sliding_window, model.config.layer_types = 100, ["full_attention"] * 3
    monkeypatch.setattr(proof, "_compare_long", lambda *_: pytest.fail("a long document was read"))
    refuse_unsupported(model)


def test_numbers_that_are_none_are_told_as_such(tiny_model):
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(TeacherError, match=r"not finite from token 0 .* weights lm_head.weight \(row 7\)\. It runs in"):
        refuse_unsupported(model)
    loud = tiny_model("qwen2")
    with torch.no_grad():
        for name in ("up_proj", "down_proj"):
            getattr(loud.model.layers[0].mlp, name).weight.mul_(3e4)
    with pytest.raises(TeacherError, match=r"all its weights are finite.*float16: set teacher.dtype to bfloat16 or"):
        refuse_unsupported(loud.half())
    refuse_unsupported(tiny.build_model("qwen2").bfloat16())


@pytest.mark.parametrize("name", ["phi3", "llama-dynamic", "mistral"])
def test_a_reply_that_grows_beyond_the_bound_is_written_as_it_is_read(name, tiny_tokenizer):
    """What was read before the bound is turned anew behind it, and a long neighbour turns nobody else."""
    lm = HfLM.wrap(families.build(name, eos_token_id=None), tiny_tokenizer, name=name)
    lm.model.generation_config.eos_token_id = 383
    long, short = (row.ids for row in _rows(28, 5))
    session = lm.session()
    given = session.feed(long)
    for at in range(28, 38):
        torch.testing.assert_close(given, lm.logits(_grown(long, at))[-1], rtol=1e-4, atol=1e-4)
        given = session.feed(_grown(long, at + 1)[-1:])
    replies = [replies[0].ids for replies in lm.generate([long, short], Sampling(0.0, max_tokens=10))]
    for prompt, reply in zip((long, short), replies, strict=True):
        text = np.concatenate([prompt, reply])
        assert [int(lm.logits(text[:at])[-1].argmax()) for at in range(len(prompt), len(text))] == reply.tolist()


def _grown(ids, length):
    """A text of that length that begins with `ids` and goes on in the same way each time."""
    return np.concatenate([ids, np.arange(50, 50 + length, dtype=np.int32)])[:length]
