"""Depth pruning: the teacher with fewer blocks, those that change the hidden state least being left out.

Nothing here knows a family: the blocks are found by structure, the pruned model is built from the cut config exactly as
a saved folder would be, and it is then proven to compute what the teacher computes with the left-out blocks skipped.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.models.loading import brief
from limbeck.students.blocks import (
    BUILD_ERRORS,
    BlockOutput,
    Blocks,
    edit_config,
    find_blocks,
    frozen,
    key_of,
    output_of,
    per_layer_keys,
    probe_ids,
    run_decoder,
    watching,
    with_output,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import PretrainedConfig, PreTrainedModel

PROBE_TOKENS = 24


def block_influence(model: PreTrainedModel, rows: Sequence[np.ndarray]) -> list[float]:
    """Block influence of every layer: 1 - mean over all tokens of cos(block input, block output).

    ShortGPT (arXiv 2403.03853), eq. 1. `rows` are token ids (int, [T]); each is run alone, in eval mode, in the model's
    own dtype; cosines are taken in float32 and summed in float64. The model is left as it was.
    Raises DataError without rows, TeacherError when a layer's influence is not finite.
    """
    blocks = find_blocks(model)
    num_tokens = sum(len(row) for row in rows)
    if num_tokens == 0:
        raise DataError("block influence needs at least one training row with tokens; none was given. Check `data`.")
    sums = [0.0] * len(blocks)

    def add(layer: int, before: Tensor, output: BlockOutput) -> None:
        cosine = nn.functional.cosine_similarity(before.float(), output_of(output).float(), dim=-1)
        sums[layer] += float(cosine.double().sum())

    with watching(blocks, range(len(blocks)), add), frozen(model):
        for row in rows:
            if len(row):
                run_decoder(model, torch.as_tensor(row, dtype=torch.long)[None])
    influence = [1.0 - total / num_tokens for total in sums]
    bad = [layer for layer, value in enumerate(influence) if not math.isfinite(value)]
    if bad:
        raise TeacherError(
            f"layer {bad[0]} of the model family {model.config.model_type!r} gives hidden states that are not finite "
            f"in {model.dtype}. Open the teacher in another dtype (`teacher.dtype: float32`)."
        )
    return influence


def choose_layers(influence: Sequence[float], num_keep: int) -> tuple[int, ...]:
    """The `num_keep` layers of most influence, in their order; of equals the earlier one is kept.

    The first and the last layer are treated like all others. Raises RecipeError when there are fewer layers.
    """
    if not 1 <= num_keep <= len(influence):
        raise RecipeError(
            f"student.layers is {num_keep}, but the teacher has {len(influence)} layers; "
            f"allowed are 1 to {len(influence)}."
        )
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:num_keep]))


def check_keep(keep: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """`keep` as a tuple. Raises RecipeError unless it names layers of the teacher, each once, in rising order."""
    allowed = f"Allowed are layers 0 to {num_layers - 1}, each once, in rising order."
    if not keep:
        raise RecipeError(f"student.keep is empty; at least one layer must be kept. {allowed}")
    outside = [layer for layer in keep if not 0 <= layer < num_layers]
    if outside:
        raise RecipeError(f"student.keep names layer {outside[0]}; the teacher has {num_layers} layers. {allowed}")
    if list(keep) != sorted(set(keep)):
        raise RecipeError(f"student.keep is {list(keep)}: out of order or with repeats. {allowed}")
    return tuple(keep)


def prune_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class, dtype and device that has only the layers `keep`, with their weights copied.

    Layer indices, per-layer settings (`layer_types` ...), tied embeddings and the generation config are those that a
    fresh load of the saved student has. Raises RecipeError for a bad `keep` (see `check_keep`), and TeacherError,
    naming the family, when the result is not exactly the teacher with the other layers skipped.
    """
    blocks = find_blocks(model)
    keep = check_keep(keep, len(blocks))
    family = model.config.model_type
    try:
        student = _rebuild(model, cut_config(model.config, keep), _cut_state(model, blocks, keep))
        difference = _difference(model, student, blocks, keep)
    except TeacherError:
        raise
    except BUILD_ERRORS as error:
        raise TeacherError(_cannot_prune(family, brief(error))) from error
    if not difference < (1e-4 if model.dtype == torch.float32 else 5e-2):
        raise TeacherError(_cannot_prune(family, f"hidden states differ by {difference:.3g} of their spread"))
    return student


def cut_config(config: PretrainedConfig, keep: Sequence[int]) -> PretrainedConfig:
    """The config of the model with only the layers `keep`: their number, and every list with one entry per layer."""
    layers_key = key_of(config, "num_hidden_layers")
    num_layers = config.get_text_config().num_hidden_layers

    def cut(values: dict[str, Any]) -> None:
        for key in per_layer_keys(values, num_layers):
            values[key] = [values[key][layer] for layer in keep]
        values[layers_key] = len(keep)

    return edit_config(config, cut)


def _cut_state(model: PreTrainedModel, blocks: Blocks, keep: Sequence[int]) -> dict[str, Tensor]:
    """Copies of the weights that stay, under their new names; tied ones once."""
    new_index = {str(old): str(new) for new, old in enumerate(keep)}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in model.all_tied_weights_keys:
            continue
        if name.startswith(f"{blocks.path}."):
            old, rest = name.removeprefix(f"{blocks.path}.").split(".", 1)
            if old not in new_index:
                continue
            name = f"{blocks.path}.{new_index[old]}.{rest}"
        state[name] = tensor.detach().to("cpu", copy=True)
    return state


def _rebuild(model: PreTrainedModel, config: PretrainedConfig, state: dict[str, Tensor]) -> PreTrainedModel:
    """A model of `model`'s class with these weights, built by the code that loads a saved folder."""
    loaded: Any = type(model).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    student, info = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f"weights do not fit its shortened config: {wrong}")
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device)


def _difference(model: PreTrainedModel, student: PreTrainedModel, blocks: Blocks, keep: Sequence[int]) -> float:
    """Root mean square difference of hidden states to the teacher with the other layers skipped, over their spread."""
    ids_BT = probe_ids(model, PROBE_TOKENS)
    left_out = sorted(set(range(len(blocks))) - set(keep))
    with frozen(model), watching(blocks, left_out, lambda _layer, before, output: with_output(output, before)):
        theirs = run_decoder(model, ids_BT).float()
    with frozen(student):
        ours = run_decoder(student, ids_BT).float()
    return float((ours - theirs).square().mean().sqrt() / theirs.std().clamp_min(1e-12))


def _cannot_prune(family: str, why: str) -> str:
    return (
        f"the model family {family!r} cannot be pruned: without some layers it is not the same model with these layers "
        f"skipped ({why}). Choose other layers, or a `pretrained` or `scratch` student."
    )
