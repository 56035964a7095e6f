"""More families than the shared ones, all four layers deep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests import tiny

UNGROUPED = {key: value for key, value in tiny.SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
FAMILIES = {
    **tiny.FAMILIES,
    "cohere2": ("Cohere2Config", {**tiny.SIZES, "logit_scale": 0.25, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**tiny.SIZES, "query_pre_attn_scalar": 16, "sliding_window": 4}),
    "gpt_neox": ("GPTNeoXConfig", UNGROUPED),
    "mixtral": ("MixtralConfig", {**tiny.SIZES, "num_local_experts": 4}),
    "phi3": ("Phi3Config", {**UNGROUPED, "num_key_value_heads": 2}),
    "qwen2-sliding": (
        "Qwen2Config",
        {**tiny.SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {**tiny.SIZES, "head_dim": 32}),
    "smollm3": ("SmolLM3Config", {**tiny.SIZES, "no_rope_layers": [1, 0, 1, 0]}),
}


def build_model(family: str, **changes: object) -> PreTrainedModel:
    name, settings = FAMILIES[family]
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    config = getattr(transformers, name)(**{**settings, layers: 4, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    return build_model(family)


@pytest.fixture
def build() -> Callable[..., PreTrainedModel]:
    """`build("gemma2", sliding_window=8)`: a random model of that family with four layers."""
    return build_model
