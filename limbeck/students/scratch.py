"""A new model of the teacher's architecture, sized by a parameter budget or by explicit sizes.

How a size is chosen. A width is a multiple of 64 and of the head size; heads, key-value heads and the MLP follow the
teacher's ratios, and the head size is the teacher's (64 where no size with the teacher's meets the budget). For every
width, the two depths around the budget are looked at, as long as width : depth stays within 8 times the teacher's ratio
either way: small budgets with large vocabularies would otherwise lead to threads of a hundred layers of 64. Of these
sizes, those within 10% of the budget count, and the one nearest to the teacher's width : depth and heads : key-value
heads is built. Parameters are counted exactly, on the meta device.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError, TeacherError
from limbeck.models.loading import brief
from limbeck.students.blocks import (
    BUILD_ERRORS,
    edit_config,
    embedding_weight,
    find_blocks,
    frozen,
    head_weight,
    key_of,
    per_layer_keys,
    probe_ids,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from limbeck.recipe import ScratchStudent


TOLERANCE = 0.10
CHUNK = 8192  # rows of an embedding at a time
MAX_RATIO = 8
STEP = 64
MLP_KEYS = (
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp",
)  # fmt: skip
KV_KEYS = ("num_key_value_heads", "num_kv_heads")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Shape:
    """The sizes that are chosen. `mlp` follows from `width` by the teacher's ratio."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"width {self.width}, layers {self.layers}, heads {self.heads}"


def parse_parameters(text: str) -> int:
    """`17M`, `1.5B`, `500k` or plain digits as a number. Raises RecipeError."""
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmb]?)\s*", text, re.IGNORECASE)
    number = float(match[1].replace("_", "")) * UNITS[match[2].lower()] if match else 0
    if number < 1:
        raise RecipeError(
            f"student.parameters is {text!r}; allowed is a number with k, M or B, such as 500k, 17M or 1.5B."
        )
    return round(number)


def build_scratch(teacher: PreTrainedModel, student: ScratchStudent, *, seed: int, vocab: int) -> PreTrainedModel:
    """A float32 model on the CPU of the teacher's class with `vocab` tokens, initialised from `seed`, in eval mode.

    The state of the global generators is restored. Raises RecipeError when the sizes contradict each other or no size
    meets the budget within 10% (naming the nearest), TeacherError when the family cannot be resized.
    """
    config = _config(teacher, choose_shape(teacher, student, vocab=vocab), vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(teacher, config).eval()
        if student.teacher_embeddings:
            copy_embeddings(teacher, model)
    _prove(model, vocab)
    return model


def choose_shape(teacher: PreTrainedModel, student: ScratchStudent, *, vocab: int) -> Shape:
    """The sizes that the recipe names, or those that its budget leads to (see the top of this file)."""
    explicit = (student.hidden_size, student.layers, student.heads)
    if student.parameters is not None:
        if any(size is not None for size in explicit):
            raise RecipeError(
                "student names `parameters` and also sizes; allowed is either `parameters`, or `hidden_size`, `layers` "
                "and `heads`. Remove one of them."
            )
        return _shape_for_budget(teacher, parse_parameters(student.parameters), vocab)
    width, layers, heads = explicit
    if width is None or layers is None or heads is None:
        raise RecipeError(
            "a `scratch` student needs `parameters` (such as 17M), or all three of `hidden_size`, `layers` and `heads`."
        )
    if width % heads or width // heads % 2:
        raise RecipeError(
            f"student.hidden_size {width} with student.heads {heads} gives heads of size {width / heads:g}; allowed is "
            f"an even whole number. Nearest width: {max(round(width / heads / 2), 1) * 2 * heads}."
        )
    base = shape_of(teacher.config)
    return Shape(width, layers, heads, _kv_heads(heads, base), width // heads)


def shape_of(config: PretrainedConfig) -> Shape:
    """The sizes of a model. Raises TeacherError, naming the family, when its config does not tell them."""
    text: Any = config.get_text_config()
    try:
        width, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
        kv_heads = next((getattr(text, key) for key in KV_KEYS if getattr(text, key, None)), heads)
        return Shape(width, layers, heads, kv_heads, getattr(text, "head_dim", None) or width // heads)
    except (AttributeError, TypeError) as error:
        raise TeacherError(_cannot_resize(config.model_type, brief(error))) from error


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def embedding_parameters(model: PreTrainedModel) -> int:
    """Parameters of the token embedding and the output head, tied ones once."""
    weights = {id(weight): weight.numel() for weight in (embedding_weight(model), head_weight(model))}
    return sum(weights.values())


def _shape_for_budget(teacher: PreTrainedModel, budget: int, vocab: int) -> Shape:
    base = shape_of(teacher.config)
    sizes: list[tuple[int, Shape]] = []
    for head_dim in (base.head_dim,) if STEP % base.head_dim == 0 else (base.head_dim, STEP):
        sizes += list(_sizes(teacher, budget, vocab, replace(base, head_dim=head_dim)))
        near = [shape for count, shape in sizes if abs(count - budget) <= TOLERANCE * budget]
        for shape in sorted(near, key=lambda shape: (_distance(shape, base), shape.width)):
            count = count_parameters(_meta(teacher, shape, vocab))  # exact, also where layers differ
            if abs(count - budget) <= TOLERANCE * budget:
                return shape
    raise RecipeError(_no_size(teacher, budget, vocab, sizes))


def _sizes(teacher: PreTrainedModel, budget: int, vocab: int, base: Shape) -> Iterator[tuple[int, Shape]]:
    """For every width up to the first that is too wide: the depths around the budget, with their parameter counts."""
    step = math.lcm(STEP, base.head_dim)
    own = shape_of(teacher.config)
    heads_per_width = own.heads * own.head_dim / own.width / base.head_dim
    for width in range(step, step * 1000, step):
        heads = _divisor(width, width * heads_per_width)
        shape = Shape(width, 1, heads, _kv_heads(heads, own), base.head_dim)
        ratio = width * own.layers / own.width  # the depth of the teacher's proportions
        least, most = max(math.ceil(ratio / MAX_RATIO), 1), max(int(ratio * MAX_RATIO), 1)
        one, two = (count_parameters(_meta(teacher, replace(shape, layers=depth), vocab)) for depth in (1, 2))
        more = max((budget - one) // max(two - one, 1), 0)
        for depth in {min(max(depth, least), most) for depth in (1 + more, 2 + more)}:
            yield one + (depth - 1) * (two - one), replace(shape, layers=depth)
        if one > budget * (1 + TOLERANCE):
            return


def _distance(shape: Shape, base: Shape) -> float:
    """How far from the teacher's proportions, in nats: width : depth and heads : key-value heads."""
    depth = math.log(shape.width / shape.layers * base.layers / base.width)
    groups = math.log(shape.heads / shape.kv_heads * base.kv_heads / base.heads)
    return abs(depth) + abs(groups)


def _kv_heads(heads: int, base: Shape) -> int:
    """The divisor of `heads` that keeps the teacher's ratio of heads to key-value heads best."""
    return _divisor(heads, heads * base.kv_heads / base.heads)


def _divisor(number: int, ideal: float) -> int:
    """The divisor of `number` nearest to `ideal` (by ratio; of equals the smaller)."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: (abs(math.log(divisor / ideal)), divisor))


def _no_size(teacher: PreTrainedModel, budget: int, vocab: int, sizes: list[tuple[int, Shape]]) -> str:
    family = f"the family {teacher.config.model_type!r} with a vocabulary of {vocab:,} tokens"
    advice = "or give `hidden_size`, `layers` and `heads`."
    smallest = replace(min((shape for _, shape in sizes), key=lambda shape: shape.width), layers=1)
    model = _meta(teacher, smallest, vocab)
    least, embeddings = count_parameters(model), embedding_parameters(model)
    if budget < least:
        return (
            f"student.parameters is {budget:,}, but the smallest model of {family} has {least:,} parameters "
            f"({smallest}), {embeddings:,} of them embeddings. Ask for at least that many, {advice}"
        )
    below = max((size for size in sizes if size[0] <= budget), key=lambda size: size[0])
    above = min((size for size in sizes if size[0] > budget), key=lambda size: size[0])
    nearest = " and ".join(f"{count:,} ({shape})" for count, shape in (below, above))
    return (
        f"no model of {family} has student.parameters {budget:,} within {TOLERANCE:.0%} at sound proportions "
        f"({embeddings / smallest.width:,.0f} parameters per unit of width are embeddings); the nearest sizes are "
        f"{nearest}. Ask for one of these, {advice}"
    )


def _config(teacher: PreTrainedModel, shape: Shape, vocab: int) -> PretrainedConfig:
    """The teacher's config with other sizes. Lists with one entry per layer start as the teacher's and repeat."""
    config = teacher.config
    base = shape_of(config)
    names = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}

    def resize(values: dict[str, Any]) -> None:
        for key in per_layer_keys(values, base.layers):
            values[key] = [values[key][layer % base.layers] for layer in range(shape.layers)]
        for key in MLP_KEYS:
            if values.get(key):
                values[key] = _scale(values[key], shape.width / base.width)
        for key in KV_KEYS:
            if values.get(key):
                values[key] = shape.kv_heads
        if values.get("word_embed_proj_dim") == base.width:
            values["word_embed_proj_dim"] = shape.width
        _set_head_dim(values, base.head_dim, shape.head_dim)
        values.update({key_of(config, name): size for name, size in names.items()})
        values[key_of(config, "vocab_size")] = vocab

    try:
        return edit_config(config, resize)
    except BUILD_ERRORS as error:
        raise TeacherError(_cannot_resize(config.model_type, brief(error))) from error


def _scale(size: int | list[int], ratio: float) -> int | list[int]:
    if isinstance(size, int):
        return max(round(size * ratio / 16), 1) * 16
    return [max(round(one * ratio / 16), 1) * 16 for one in size]


def _set_head_dim(values: dict[str, Any], old: int, new: int) -> None:
    """The head size, and the attention scales that families state apart from it though they follow from it."""
    if values.get("head_dim"):
        values["head_dim"] = new
    if values.get("query_pre_attn_scalar") == old:
        values["query_pre_attn_scalar"] = new
    if math.isclose(values.get("attention_multiplier") or 0.0, 1 / old):
        values["attention_multiplier"] = 1 / new


def _build(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    try:
        return type(teacher)._from_config(
            config, dtype=torch.float32, attn_implementation=teacher.config._attn_implementation
        )
    except BUILD_ERRORS as error:
        raise TeacherError(_cannot_resize(config.model_type, brief(error))) from error


def _meta(teacher: PreTrainedModel, shape: Shape, vocab: int) -> PreTrainedModel:
    """The model of this shape without memory behind its parameters."""
    with torch.device("meta"):
        return _build(teacher, _config(teacher, shape, vocab))


def _prove(model: PreTrainedModel, vocab: int) -> None:
    """Raise TeacherError, naming the family, unless the model has the layers that its config says, and runs."""
    find_blocks(model)
    try:
        with frozen(model):
            logits_BTV = model(input_ids=probe_ids(model, 4), use_cache=False).logits
    except BUILD_ERRORS as error:
        raise TeacherError(_cannot_resize(model.config.model_type, brief(error))) from error
    if logits_BTV.shape[-1] != vocab or not bool(logits_BTV.isfinite().all()):
        raise TeacherError(
            _cannot_resize(model.config.model_type, f"logits of shape {tuple(logits_BTV.shape)} or not finite")
        )


def _cannot_resize(family: str, why: str) -> str:
    return (
        f"the model family {family!r} cannot be built in another size ({why}). Allowed are decoders whose config names "
        "hidden size, layers and heads (Llama, Qwen, GPT-2, Gemma 2, Granite, Cohere ...). "
        "Use a `prune` or `pretrained` student."
    )


def copy_embeddings(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Set the student's token embedding, and its output head where that is not tied, from the teacher's.

    Rows of tokens that only the student has keep their initial values. Uses torch's global generator where the student
    is wider than the teacher.
    """
    pairs = [(embedding_weight(teacher), embedding_weight(student))]
    if head_weight(student) is not embedding_weight(student):
        pairs.append((head_weight(teacher), head_weight(student)))
    with torch.no_grad():
        for source_VD, new_VD in pairs:
            num_rows = min(len(source_VD), len(new_VD))
            rows_VD = source_VD[:num_rows].detach().cpu().float()
            if source_VD.shape[1] != new_VD.shape[1]:
                rows_VD = project(rows_VD, new_VD.shape[1], std=float(new_VD.std()))
            new_VD[:num_rows] = rows_VD


def project(rows_VD: Tensor, width: int, *, std: float) -> Tensor:
    """Rows [V, D] as rows [V, width] whose inner products are as near to the old ones as they can be, scaled to `std`.

    Narrower: the `width` leading right singular vectors (truncated SVD, the best rank-`width` approximation: Eckart and
    Young 1936), with the sign of each fixed by its largest entry. Wider: a random isometry, from torch's global
    generator.
    """
    dim = rows_VD.shape[1]
    if width < dim:
        gram_DD = torch.zeros(dim, dim, dtype=torch.float64)
        for chunk_nD in rows_VD.split(CHUNK):
            gram_DD += chunk_nD.double().T @ chunk_nD.double()
        basis_DW = torch.linalg.eigh(gram_DD).eigenvectors.flip(1)[:, :width]
        largest_1W = basis_DW.gather(0, basis_DW.abs().argmax(0, keepdim=True))
        basis_DW = (basis_DW * largest_1W.sign()).float()
    else:
        basis_DW = torch.linalg.qr(torch.randn(width, dim)).Q.T
    new_VW = torch.cat([chunk_nD @ basis_DW for chunk_nD in rows_VD.split(CHUNK)])
    return new_VW * (std / new_VW.std().clamp_min(1e-12))
