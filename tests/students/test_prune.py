from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig, BartForCausalLM, T5Config, T5ForConditionalGeneration

from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.students.blocks import find_blocks
from limbeck.students.prune import block_influence, check_keep, choose_layers, prune_layers
from tests.tiny import VOCAB

KEEP = (0, 2, 3)
IDS = torch.arange(14)[None] * 5 % VOCAB


def logits(model, ids_BT=IDS, **kwargs):
    with torch.no_grad():
        return model(ids_BT, **kwargs).logits


def skip(block: nn.Module) -> None:
    """An independent reference: the block's own forward, made to give back what it was given."""
    forward = block.forward

    def identity(*args, **kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        out = forward(*args, **kwargs)
        return hidden if isinstance(out, torch.Tensor) else (hidden, *out[1:])

    block.forward = identity


def test_keeping_every_layer_changes_nothing(model):
    assert torch.equal(logits(prune_layers(model, range(4))), logits(model))


def test_pruned_logits_are_the_teachers_with_these_blocks_skipped(model):
    student = prune_layers(model, KEEP)
    before = logits(model)
    skip(find_blocks(model).modules[1])
    expected = logits(model)
    assert (expected - before).abs().max() > 0.05 * before.std(), "the skipped block must matter for this test"
    torch.testing.assert_close(logits(student), expected, rtol=1e-5, atol=1e-5)


def test_generation_with_cache_is_that_without_and_that_of_the_saved_folder(model, tmp_path):
    student = prune_layers(model, KEEP)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    kwargs = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = student.generate(IDS, **kwargs, use_cache=True)
    assert torch.equal(cached, student.generate(IDS, **kwargs, use_cache=False))
    assert torch.equal(cached, loaded.generate(IDS, **kwargs, use_cache=True))
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=1e-6)


def test_layers_are_numbered_anew(model):
    student = prune_layers(model, KEEP)
    numbers = [module.layer_idx for module in student.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    assert sorted(set(numbers)) == [0, 1, 2]
    assert student.config.num_hidden_layers == len(find_blocks(student)) == 3


def test_tied_embeddings_stay_tied_and_the_rest_stays_apart(model):
    student = prune_layers(model, KEEP)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert theirs.isdisjoint(parameter.data_ptr() for parameter in student.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(("family", "key"), [("gemma2", "layer_types"), ("smollm3", "no_rope_layers")])
def test_per_layer_settings_are_cut(build, family, key):
    teacher = build(family)
    student = prune_layers(teacher, KEEP)
    assert getattr(student.config, key) == [getattr(teacher.config, key)[layer] for layer in KEEP]


def test_teacher_is_left_alone(build):
    teacher = build("llama").train()
    before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    prune_layers(teacher, KEEP)
    assert teacher.training
    assert teacher.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_generation_config_and_dtype_are_kept(build):
    teacher = build("llama").to(torch.bfloat16)
    teacher.generation_config.temperature, teacher.generation_config.do_sample = 0.3, True
    student = prune_layers(teacher, KEEP)
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()
    assert student.generation_config is not teacher.generation_config
    assert student.dtype == torch.bfloat16


def test_end_ids_as_long_as_the_stack_are_not_cut(build):
    teacher = build("llama", eos_token_id=[2, 3, 4, 5])
    assert prune_layers(teacher, KEEP).config.eos_token_id == [2, 3, 4, 5]


def test_family_that_depends_on_the_layers_number_is_refused_by_name(build):
    with pytest.raises(TeacherError, match=r"family 'gpt2' cannot be pruned.*differ"):
        prune_layers(build("gpt2", scale_attn_by_inverse_layer_idx=True), KEEP)


def test_encoder_decoders_are_refused_by_name():
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    with pytest.raises(TeacherError, match="family 't5'"):
        find_blocks(T5ForConditionalGeneration(T5Config(**small)))
    config = BartConfig(d_model=16, decoder_layers=3, encoder_layers=2, decoder_attention_heads=2, vocab_size=32)
    with pytest.raises(TeacherError, match="family 'bart'"):
        find_blocks(BartForCausalLM(config))


@pytest.mark.parametrize(
    ("keep", "found"),
    [
        ((), "empty"),
        ((0, 4), "names layer 4"),
        ((-1, 2), "names layer -1"),
        ((2, 1), "out of order"),
        ((1, 1), "repeats"),
    ],
)
def test_bad_keep_lists(build, keep, found):
    with pytest.raises(RecipeError, match=rf"{found}.*0 to 3"):
        prune_layers(build("llama"), keep)


def test_good_keep_list():
    assert check_keep([0, 3], 4) == (0, 3)


def test_influence_is_the_papers_formula(model):
    rows = [np.arange(1, 9, dtype=np.int32), np.arange(30, 50, dtype=np.int32)]
    influence = block_influence(model, rows)
    cosines = [[] for _ in range(4)]
    for row in rows:
        with torch.no_grad():
            out = model(torch.from_numpy(row.astype(np.int64))[None], output_hidden_states=True, use_cache=False)
        for layer in range(3):  # the last of hidden_states has gone through the final norm
            x, y = out.hidden_states[layer][0].double(), out.hidden_states[layer + 1][0].double()
            cosines[layer] += ((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).tolist()
    assert influence[:3] == pytest.approx([1 - np.mean(cosines[layer]) for layer in range(3)], abs=1e-5)
    assert len(influence) == 4


def test_a_block_that_does_nothing_has_no_influence(build):
    teacher = build("llama")
    block = find_blocks(teacher).modules[2]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    influence = block_influence(teacher, [np.arange(1, 12)])
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert choose_layers(influence, 3) == (0, 1, 3)


def test_influence_counts_every_token_once(build):
    teacher, rows = build("llama"), [np.arange(3), np.arange(40)]
    short, long = (block_influence(teacher, [row]) for row in rows)
    both = block_influence(teacher, [*rows, np.array([], dtype=np.int32)])
    assert both == pytest.approx([(3 * a + 40 * b) / 43 for a, b in zip(short, long, strict=True)], abs=1e-7)


def test_influence_in_eval_mode_in_any_dtype_without_traces(build):
    teacher = build("gpt2").train()
    influence = block_influence(teacher, [np.arange(20)])
    assert influence == block_influence(teacher, [np.arange(20)]), "dropout must be off"
    assert teacher.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    half = block_influence(teacher.to(torch.bfloat16), [np.arange(20)])
    assert half == pytest.approx(influence, abs=0.02)


def test_influence_of_a_broken_teacher(build):
    teacher = build("llama")
    with torch.no_grad():
        find_blocks(teacher).modules[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(TeacherError, match="layer 1 .*'llama'"):
        block_influence(teacher, [np.arange(5)])


def test_influence_needs_rows(build):
    with pytest.raises(DataError, match="at least one training row"):
        block_influence(build("llama"), [np.array([], dtype=np.int32)])


def test_choose_layers():
    assert choose_layers([0.1, 0.5, 0.2, 0.4], 2) == (1, 3)
    assert choose_layers([0.3, 0.3, 0.3, 0.3], 2) == (0, 1)
    assert choose_layers([0.0, 0.5, 0.5, 0.0], 2) == (1, 2), "first and last are treated like all others"
    assert choose_layers([0.2, 0.1], 2) == (0, 1)


@pytest.mark.parametrize("num_keep", [0, 3])
def test_choose_layers_says_how_many_there_are(num_keep):
    with pytest.raises(RecipeError, match=rf"student.layers is {num_keep}.*has 2 layers"):
        choose_layers([0.1, 0.2], num_keep)
