"""Which families go into GGUF, what llama.cpp must know of them, and how their tensors are laid out there.

Only what llama.cpp computes as the model does is let through: settings that it would ignore are refused by name. The
layouts are those of llama.cpp's own `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf import GGUFWriter
    from torch import Tensor
    from transformers import PreTrainedModel

ADVICE = "Export it to safetensors or ONNX instead."


@dataclass(frozen=True)
class Family:
    """`arch` is llama.cpp's name. `interleaved`: rotary pairs are neighbours there, halves of a head in transformers.
    `norm_shift`: norms multiply by 1 + weight in transformers. `period`: every so many layers attend to everything and
    the others to a window, 0 where all attend to everything. `large`: the number of layers from which llama.cpp infers
    another scale of attention."""

    arch: str
    interleaved: bool = False
    norm_shift: bool = False
    activation: str = "silu"
    period: int = 0
    large: int = 0


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", norm_shift=True, activation="gelu_pytorch_tanh", period=2, large=46),
    "gemma3_text": Family("gemma3", norm_shift=True, activation="gelu_pytorch_tanh", period=6, large=62),
}


class WeightPart(NamedTuple):
    """One tensor of the file: its name there, the model's own tensor (a view), and what is done to it: `heads` of
    rotary rows to interleave, or `shift` to add."""

    name: str
    tensor: Tensor
    heads: int = 0
    shift: float = 0.0

    def values(self) -> np.ndarray:
        """float32, in the file's layout: a copy of this one tensor. Raises TeacherError where it is not finite."""
        values = self.tensor.detach().to("cpu", torch.float32).numpy()
        if not np.isfinite(values).all():
            raise TeacherError(
                f"the tensor {self.name} holds values that are not finite; such a model is not exported."
            )
        if self.heads:
            values = values.reshape(self.heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        return np.ascontiguousarray(values + self.shift if self.shift else values, dtype=np.float32)


def family_of(model: PreTrainedModel) -> Family:
    """The model's family, checked to compute in llama.cpp what it computes here.

    Raises TeacherError, naming the family or the setting, where it would not.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise TeacherError(
            f"the model family {kind!r} is not exported to GGUF; allowed are {', '.join(sorted(FAMILIES))}. {ADVICE}"
        )
    family, config = FAMILIES[kind], model.config.get_text_config()
    found = next(iter(_differences(family, config)), None)
    if found:
        raise TeacherError(f"this {kind} model cannot be a GGUF file: {found}. {ADVICE}")
    return family


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _differences(family: Family, config: Any) -> Iterator[str]:
    """What llama.cpp would compute differently, as the end of a sentence."""
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        yield f"its activation is {activation!r}, and llama.cpp uses {family.activation!r} for {family.arch}"
    layers, window = list(getattr(config, "layer_types", None) or []), getattr(config, "sliding_window", None)
    if not family.period and (any(kind != "full_attention" for kind in layers) or (window and not layers)):
        yield f"it attends within a window of {window} tokens, which llama.cpp ignores for {family.arch}"
    if family.period and layers != _pattern(family.period, len(layers)):
        yield (
            f"llama.cpp takes every {family.period}th of its layers for one that attends to everything, and its layers "
            f"are {', '.join(layers)} (were some taken away?)"
        )
    if family.period and config.query_pre_attn_scalar != _scalar(family, config):
        yield (
            f"its query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp uses "
            f"{_scalar(family, config)} for {config.num_hidden_layers} layers"
        )
    if family.arch.startswith("gemma") and not config.tie_word_embeddings:
        yield f"its head is not its embedding, which llama.cpp requires of {family.arch}"
    if family.arch == "gemma3" and (config.final_logit_softcapping or config.attn_logit_softcapping):
        yield "it caps logits, which llama.cpp does not do for gemma3"
    yield from _rope_differences(family, config)


def _pattern(period: int, num: int) -> list[str]:
    return ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(num)]


def _scalar(family: Family, config: Any) -> int:
    if config.num_hidden_layers == family.large:
        return config.hidden_size // config.num_attention_heads
    return _head_dim(config)


def _rope_differences(family: Family, config: Any) -> Iterator[str]:
    for rope in _ropes(config).values():
        kind = rope.get("rope_type", "default")
        allowed = {"default", "linear", *(["llama3"] if family.arch == "llama" else [])}
        if kind not in allowed:
            known = ", ".join(sorted(allowed))
            yield f"its rotary positions are scaled by {kind!r}; for {family.arch} allowed are {known}"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield f"it rotates {rope['partial_rotary_factor']} of each head, and llama.cpp rotates all of it"
    sliding = _ropes(config).get("sliding_attention", {})
    if sliding.get("rope_type", "default") != "default":
        yield "the positions of its sliding layers are scaled, which a GGUF file cannot say"


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary settings by layer type; "" where all layers share them."""
    rope = dict(config.rope_parameters or {})
    return rope if "full_attention" in rope else {"": rope}


# ---- what the file says of the model ---------------------------------------------------------------------------------


def describe(writer: GGUFWriter, family: Family, model: PreTrainedModel, vocab: int) -> None:
    """Sizes, positions, norms, caps and windows, as llama.cpp reads them."""
    from gguf import RopeScalingType

    config: Any = model.config.get_text_config()
    head_dim = _head_dim(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(vocab)
    ropes = _ropes(config)
    rope = ropes.get("full_attention") or ropes[""]
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(float(ropes["sliding_attention"]["rope_theta"]))
    if family.period:
        writer.add_sliding_window(config.sliding_window)
    if family.arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def parts(family: Family, model: PreTrainedModel, vocab: int) -> Iterator[WeightPart]:
    """Every tensor of the file, as views: nothing is copied. Embedding and head are cut to the `vocab` real tokens.

    Raises TeacherError for a tensor that the family does not have in llama.cpp.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    config: Any = model.config.get_text_config()
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.arch)
    names = get_tensor_name_map(MODEL_ARCH(arch), config.num_hidden_layers)
    embedding_VD: Any = model.get_input_embeddings().weight
    factors = _rope_factors(model)
    if factors is not None:
        yield WeightPart("rope_freqs.weight", factors)
    for key, tensor in model.state_dict().items():
        if key.startswith("lm_head.") and tensor.data_ptr() == embedding_VD.data_ptr():
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise TeacherError(
                f"the tensor {key} has no place in llama.cpp's {family.arch} models. Are there adapters in this model "
                "that were not merged, or weights that are quantized already? Export the plain model."
            )
        rows = tensor[:vocab] if name.split(".")[0] in ("token_embd", "output") else tensor
        yield WeightPart(
            name, rows, _rotary_heads(family, key, config), float(family.norm_shift and key.endswith("norm.weight"))
        )


def _rotary_heads(family: Family, key: str, config: Any) -> int:
    if not family.interleaved:
        return 0
    if ".q_proj." in key:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in key else 0


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """What each rotary frequency is divided by (Llama 3.1's scaling), from the model's own frequencies: float32
    [head_dim / 2]; None where they are not scaled one by one."""
    config: Any = model.config.get_text_config()
    rope = _ropes(config).get("")
    if not rope or rope.get("rope_type") != "llama3":
        return None
    head_dim = _head_dim(config)
    base = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    decoder: Any = model.get_decoder()
    return (base / decoder.rotary_emb.inv_freq.double().cpu()).float()
