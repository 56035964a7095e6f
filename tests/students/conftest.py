"""Tiny random models of many families, with blocks strong enough that leaving one out is visible."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
FAMILIES = {
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", {**SIZES, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 16}),
    "gpt2": ("GPT2Config", {**GPT2_SIZES, "bos_token_id": 1, "eos_token_id": 2}),
    "gemma2": ("Gemma2Config", {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "granite": (
        "GraniteConfig",
        {**SIZES, "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "cohere": ("CohereConfig", {**SIZES, "logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {**SIZES, "logit_scale": 0.25, "sliding_window": 4}),
    "smollm3": ("SmolLM3Config", {**SIZES, "no_rope_layers": [1, 0, 1, 0]}),
    "phi3": ("Phi3Config", SIZES),
    "gpt_neox": ("GPTNeoXConfig", {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
}


def make_model(family: str, **changes: object) -> PreTrainedModel:
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**settings, **changes})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(5.0)
    return model


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    return make_model(family)


@pytest.fixture
def build():
    """`build("gemma2", sliding_window=8)`: a tiny model of that family."""
    return make_model
