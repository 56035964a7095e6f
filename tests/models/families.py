"""Tiny random models of families that read text in ways of their own: windows, chunks, positions by length, experts."""

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests import tiny

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LAYERS = ["sliding_attention", "full_attention", "full_attention"]

TABLE = {
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "phi3": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "phi3-window": ("Phi3Config", {"sliding_window": 16}),
    "llama-dynamic": ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}),
    "phimoe": ("PhimoeConfig", {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **EXPERTS,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 1,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "mixtral": ("MixtralConfig", {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 16, "layer_types": LAYERS, "query_pre_attn_scalar": 16}),
    "cohere2": ("Cohere2Config", {"sliding_window": 16, "layer_types": LAYERS}),
    "olmo3": ("Olmo3Config", {"sliding_window": 16, "layer_types": LAYERS}),
    "gpt-oss": (
        "GptOssConfig",
        {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": LAYERS},
    ),
    "afmoe": (
        "AfmoeConfig",
        {**EXPERTS, "num_shared_experts": 1, "num_dense_layers": 1, "layer_types": LAYERS, "sliding_window": 16},
    ),
    "jetmoe": ("JetMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16}),
    "llama4": (
        "Llama4TextConfig",
        {
            "attention_chunk_size": 16,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
        },
    ),
    "gpt-neo": (
        "GPTNeoConfig",
        {"num_hidden_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "mamba": ("MambaConfig", {"state_size": 8, "time_step_rank": 8}),
    "ernie-moe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1},
    ),
}


def build(name: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of the table, float32, in eval mode."""
    config, settings = TABLE[name]
    values = {**tiny.SIZES, "max_position_embeddings": 256, **settings, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(getattr(transformers, config)(**values)).float().eval()
