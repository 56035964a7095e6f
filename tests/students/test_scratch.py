from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from limbeck.errors import RecipeError, TeacherError
from limbeck.recipe import ScratchStudent
from limbeck.students.scratch import (
    _meta,
    build_scratch,
    choose_shape,
    count_parameters,
    embedding_parameters,
    parse_parameters,
    project,
    shape_of,
)
from tests.tiny import VOCAB

IDS = torch.arange(10)[None] % VOCAB
REAL = {
    "llama": LlamaConfig(  # SmolLM2-135M
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "qwen2": Qwen2Config(  # Qwen2.5-0.5B
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(),
    "gemma2": Gemma2Config(),
}


def real(family):
    """A model of real size without memory behind it."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(REAL[family])


def budget(text, **kwargs):
    return ScratchStudent(parameters=text, **kwargs)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500k", 500_000), ("17M", 17_000_000), ("1.5B", 1_500_000_000), ("17 m", 17_000_000), ("123456", 123_456)],
)
def test_parse_parameters(text, number):
    assert parse_parameters(text) == number


@pytest.mark.parametrize("text", ["", "17X", "M", "-5M", "0", "1.2.3M", "0.0001k", "1e6"])
def test_bad_budgets_are_named(text):
    with pytest.raises(RecipeError, match="such as 500k, 17M or 1.5B"):
        parse_parameters(text)


def test_every_family_is_built_to_its_budget(model):
    student = build_scratch(model, budget("300k"), seed=0, vocab=VOCAB)
    assert type(student) is type(model)
    assert count_parameters(student) == pytest.approx(300_000, rel=0.1)
    assert student.dtype == torch.float32
    with torch.no_grad():
        assert student(IDS).logits.shape == (1, 10, VOCAB)
    cached, plain = (
        student.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None, pad_token_id=0)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_every_family_is_built_to_explicit_sizes(model):
    sizes = ScratchStudent(hidden_size=64, layers=5, heads=8)
    student = build_scratch(model, sizes, seed=0, vocab=80)
    shape, teacher = shape_of(student.config), shape_of(model.config)
    assert (shape.width, shape.layers, shape.heads, shape.head_dim) == (64, 5, 8, 8)
    assert shape.heads * teacher.kv_heads == teacher.heads * shape.kv_heads
    assert student.get_input_embeddings().weight.shape == (80, 64)


@pytest.mark.parametrize(
    ("family", "parameters"), [("llama", "400M"), ("qwen2", "135M"), ("gpt2", "40M"), ("gemma2", "1.5B")]
)
def test_real_sizes(family, parameters):
    teacher, vocab = real(family), REAL[family].vocab_size
    shape = choose_shape(teacher, budget(parameters), vocab=vocab)
    base = shape_of(teacher.config)
    assert count_parameters(_meta(teacher, shape, vocab)) == pytest.approx(parse_parameters(parameters), rel=0.1)
    assert shape.width % math.lcm(64, shape.head_dim) == 0
    assert shape.head_dim == base.head_dim
    assert shape.heads % shape.kv_heads == 0
    assert 1 / 8 <= shape.width / shape.layers * base.layers / base.width <= 8


def test_the_teachers_own_size_is_found_again():
    teacher = real("llama")
    assert choose_shape(teacher, budget("135M"), vocab=49152) == shape_of(teacher.config)
    shape = choose_shape(teacher, budget("17M"), vocab=49152)
    assert (shape.width, shape.layers, shape.heads, shape.kv_heads) == (192, 19, 3, 1)


def test_alternating_layers_go_on_alternating(build):
    student = build_scratch(build("gemma2"), ScratchStudent(hidden_size=32, layers=6, heads=4), seed=0, vocab=VOCAB)
    assert student.config.layer_types == ["sliding_attention", "full_attention"] * 3
    assert student.config.query_pre_attn_scalar == 8


def test_budget_below_the_embeddings():
    with pytest.raises(
        RecipeError, match=r"smallest model of the family 'llama'.*3,196,096 parameters.*3,145,728 of them"
    ):
        choose_shape(real("llama"), budget("500k"), vocab=49152)


def test_budget_between_two_widths_names_the_nearest():
    with pytest.raises(RecipeError, match=r"nearest sizes are 4,453,696 \(width 64.*and 6,470,016 \(width 128"):
        choose_shape(real("llama"), budget("5M"), vocab=49152)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ScratchStudent(), "needs `parameters`"),
        (ScratchStudent(hidden_size=64, layers=2), "all three"),
        (ScratchStudent(parameters="1M", layers=2), "either `parameters`"),
        (ScratchStudent(hidden_size=65, layers=2, heads=4), "Nearest width: 64"),
        (ScratchStudent(hidden_size=12, layers=2, heads=4), "even whole number"),
    ],
)
def test_contradicting_sizes(build, student, message):
    with pytest.raises(RecipeError, match=message):
        build_scratch(build("llama"), student, seed=0, vocab=VOCAB)


def test_families_without_these_sizes_are_refused_by_name():
    config = BartConfig(d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, vocab_size=32)
    with pytest.raises(TeacherError, match="family 'bart'"):
        build_scratch(BartForCausalLM(config), ScratchStudent(hidden_size=32, layers=2, heads=4), seed=0, vocab=32)


def test_seeded_and_global_generators_are_left_alone(build):
    teacher, student = build("llama"), budget("200k", teacher_embeddings=True)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (build_scratch(teacher, student, seed=seed, vocab=VOCAB).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_teacher_embeddings_of_the_same_width_are_copied(model):
    width = shape_of(model.config).width
    sizes = ScratchStudent(hidden_size=width, layers=2, heads=4, teacher_embeddings=True)
    student = build_scratch(model, sizes, seed=0, vocab=VOCAB + 4)
    assert torch.equal(student.get_input_embeddings().weight[:VOCAB], model.get_input_embeddings().weight)
    assert torch.equal(student.get_output_embeddings().weight[:VOCAB], model.get_output_embeddings().weight)
    assert student.get_input_embeddings().weight[VOCAB:].std() > 0


def test_teacher_embeddings_of_another_width_keep_the_initial_scale(build):
    teacher = build("llama")
    plain, student = (
        build_scratch(
            teacher, ScratchStudent(hidden_size=16, layers=2, heads=2, teacher_embeddings=flag), seed=0, vocab=VOCAB
        )
        for flag in (False, True)
    )
    assert student.get_input_embeddings().weight.std().item() == pytest.approx(
        plain.get_input_embeddings().weight.std().item(), rel=1e-3
    )


def test_projection_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 24, generator=generator) * torch.linspace(4, 0.1, 24)
    new = project(rows, 8, std=1.0)
    scale = rows.norm() / new.norm()
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    best = (u[:, :8] * s[:8]) @ (u[:, :8] * s[:8]).T
    ours = new @ new.T
    torch.testing.assert_close(ours / ours.norm(), best / best.norm(), rtol=1e-3, atol=1e-5)
    assert new.std().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(new, project(rows, 8, std=1.0)), "deterministic"
    assert scale > 0


def test_projection_to_more_dimensions_keeps_every_angle():
    rows = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    new = project(rows, 40, std=0.02)
    ratio = (new @ new.T) / (rows @ rows.T)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=2e-3, atol=0)


def test_embedding_parameters(build):
    assert embedding_parameters(build("llama")) == VOCAB * 64
    assert embedding_parameters(build("qwen2")) == 2 * VOCAB * 64
