"""Models in this process: fused path proven per family, refusals by name, generation, heads and fingerprints."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig

from limbeck.errors import TeacherError
from limbeck.losses import iter_logits
from limbeck.models.hf import HfLM, head_of, packed_hidden, refuse_unsupported
from limbeck.models.open import open_lm
from limbeck.text.packing import pack
from limbeck.types import Row, Sampling
from tests.train.two_ranks import rows

FAMILIES = ("llama", "gpt2", "qwen2", "gemma2", "granite")


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(family, tiny_folder):
    """Statement 13, and the head with its bias, scale and soft cap: logits equal the model's own, one by one."""
    lm = open_lm(tiny_folder(family), dtype="float32")
    items = rows(4)
    batch = pack(items)
    ours = torch.cat([z.clone() for _, z in iter_logits(lm.hidden(batch), lm.head)])
    theirs = []
    for item in items:
        with torch.no_grad():
            z = lm.model(torch.from_numpy(item.ids.astype(np.int64))[None]).logits[0]
        theirs += [z[j - 1] for start, end in item.spans for j in range(start, end)]
    torch.testing.assert_close(ours, torch.stack(theirs)[:, : lm.vocab], rtol=1e-4, atol=1e-5)


def test_teacher_is_frozen_in_eval_mode_and_repeats_itself(tiny_llama):
    """Statement 23."""
    lm = open_lm(tiny_llama)
    batch = pack(rows(3))
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert torch.equal(lm.hidden(batch), lm.hidden(batch))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families_are_refused_by_name(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(TeacherError, match=config.model_type):
        refuse_unsupported(model)


def test_a_family_that_changes_logits_after_the_head_is_refused(tiny_model):
    model = tiny_model("llama")
    real = model.forward

    def forward(*args, **kwargs):
        out = real(*args, **kwargs)
        out.logits = out.logits * 1.3 + out.logits.roll(1, -1)
        return out

    model.forward = forward
    with pytest.raises(TeacherError, match="llama"):
        refuse_unsupported(model.eval())


def test_padded_heads_are_cut_to_real_tokens(tiny_folder, tiny_tokenizer):
    """Statement 20: padding of the head is no token."""
    lm = open_lm(tiny_folder("llama", vocab_size=448), dtype="float32")
    assert lm.model.get_output_embeddings().weight.shape[0] == 448
    assert lm.vocab == len(tiny_tokenizer) == lm.head.weight_VD.shape[0] == 384


def test_no_token_is_generated_that_only_pads_the_head(tiny_tokenizer, tiny_model):
    model = tiny_model("qwen2", vocab_size=448)
    with torch.no_grad():
        model.lm_head.weight[384:] *= 10  # the padding would win nearly always
    lm = HfLM.wrap(model, tiny_tokenizer, name="padded")
    for sampling in (Sampling(temperature=0, max_tokens=8), Sampling(n=4, max_tokens=8)):
        replies = lm.generate([np.arange(5, dtype=np.int32) + 40], sampling)[0]
        assert max(reply.ids.max() for reply in replies) < lm.vocab == 384


def test_fingerprint_tells_weights_apart(tiny_folder, tiny_model, tiny_tokenizer):
    one, same, other = (open_lm(tiny_folder("llama", seed=s), dtype="float32") for s in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_generation_is_deterministic_greedy_or_seeded(tiny_llama):
    lm = open_lm(tiny_llama, dtype="float32")
    prompts = [np.array([5, 6, 7], np.int32), np.array([9], np.int32)]
    greedy = lm.generate(prompts, Sampling(temperature=0, max_tokens=6))
    alone = lm.generate(prompts[:1], Sampling(temperature=0, max_tokens=6))
    assert np.array_equal(greedy[0][0].ids, alone[0][0].ids)  # left padding changes nothing
    drawn = [lm.generate(prompts, Sampling(n=3, max_tokens=6, seed=s)) for s in (1, 1, 2)]
    assert [len(replies) for replies in drawn[0]] == [3, 3]
    flat = [[r.ids.tolist() for replies in d for r in replies] for d in drawn]
    assert flat[0] == flat[1] != flat[2]
    before = torch.random.get_rng_state()
    lm.generate(prompts, Sampling(max_tokens=2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_replies_end_at_the_end_token_and_at_stop_strings(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    lm = HfLM.wrap(model, tiny_tokenizer, name="t")
    prompts = [np.array([5, 6, 7], np.int32)]
    free = lm.generate(prompts, Sampling(temperature=0, max_tokens=8))[0][0]
    assert free.finish_reason in ("stop", "length") and 1 <= len(free.ids) <= 8
    piece = tiny_tokenizer.decode(free.ids[:2])
    if piece.strip():
        stopped = lm.generate(prompts, Sampling(temperature=0, max_tokens=8, stop=(piece,)))[0][0]
        assert stopped.finish_reason == "stop" and stopped.ids.tolist() == free.ids[:2].tolist()
    end = int(free.ids[1])
    model.generation_config.eos_token_id = end
    ended = lm.generate(prompts, Sampling(temperature=0, max_tokens=8))[0][0]
    assert ended.ids.tolist() == free.ids[: free.ids.tolist().index(end) + 1].tolist() and ended.finish_reason == "stop"


def test_gradients_reach_the_student_through_packing(tiny_model):
    model = tiny_model("llama")
    from limbeck.models.attention import PACKED, register_packed

    register_packed()
    model.set_attn_implementation(PACKED)
    packed_hidden(model, pack(rows(2))).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lm_head" not in n)
    assert head_of(model).weight_VD is model.get_output_embeddings().weight


def test_missing_models_say_what_is_allowed(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match="safetensors|tokenizer"):
        open_lm(tmp_path / "empty")


def test_packed_attention_without_lengths_is_an_error(tiny_model):
    from limbeck.models.attention import PACKED, register_packed

    model = tiny_model("llama")
    register_packed()
    model.set_attn_implementation(PACKED)
    with pytest.raises(ValueError, match="document lengths"):
        model(torch.tensor([[1, 2, 3]]))


def test_row_type_is_enough_to_pack():
    assert pack([Row("a", "train", "", "", np.array([1, 2], np.int32), ((1, 2),), "x")]).num_supervised == 1
