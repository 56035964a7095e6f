"""Where a decoder keeps its blocks, and how its config says how many there are: found by structure, not by family."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from limbeck.errors import TeacherError
from limbeck.models.loading import brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PretrainedConfig, PreTrainedModel

NOT_PER_LAYER = frozenset({"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "tokens_to_suppress"})
"""Settings of a config that may be lists, and never one entry per layer."""

BUILD_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, StrictDataclassError)
"""What a family raises when a config does not suit it."""

BlockOutput = Tensor | tuple[Any, ...] | list[Any]


@dataclass(frozen=True)
class Blocks:
    """The decoder's blocks: `modules[i]` is block i, its weights are named `path`.i.* in the model."""

    path: str
    modules: nn.ModuleList

    def __len__(self) -> int:
        return len(self.modules)


def find_blocks(model: PreTrainedModel) -> Blocks:
    """The one outermost ModuleList of the decoder that has as many modules as the config has hidden layers.

    Raises TeacherError, naming the family, when there is no such list or more than one.
    """
    family = model.config.model_type
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if model.config.is_encoder_decoder or num_layers is None:
        raise TeacherError(_not_a_stack(family, "its config does not name the hidden layers of a decoder"))
    inside = {id(module) for module in model.get_decoder().modules()}
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and id(m) in inside]
    found = [(name, m) for name, m in lists if len(m) == num_layers]
    outer = [(name, m) for name, m in found if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in outer) or "none"
        raise TeacherError(_not_a_stack(family, f"lists of {num_layers} modules in its decoder: {names}"))
    return Blocks(*outer[0])


def _not_a_stack(family: str, why: str) -> str:
    return (
        f"the layers of the model family {family!r} cannot be found ({why}). Allowed are decoders with one list of "
        "blocks (Llama, Qwen, GPT-2, Gemma, Granite, Cohere ...). Use a `pretrained` student for this teacher."
    )


def output_of(output: BlockOutput) -> Tensor:
    """The hidden states that a block returns."""
    return output if isinstance(output, Tensor) else output[0]


def with_output(output: BlockOutput, hidden: Tensor) -> BlockOutput:
    """What a block returned, with other hidden states in it."""
    return hidden if isinstance(output, Tensor) else type(output)((hidden, *output[1:]))


@contextlib.contextmanager
def watching(
    blocks: Blocks, layers: Iterable[int], leave: Callable[[int, Tensor, BlockOutput], BlockOutput | None]
) -> Iterator[None]:
    """Inside, every call of these blocks ends with `leave(layer, hidden states it was given, what it returned)`.

    What `leave` returns, unless it is None, is returned in place of the block's own result.
    """
    given: dict[int, Tensor] = {}  # a copy: some blocks add to their input in place

    def enter(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[layer] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

    with contextlib.ExitStack() as stack:
        for layer in layers:
            block = blocks.modules[layer]
            handles = (
                block.register_forward_pre_hook(lambda _m, a, k, i=layer: enter(i, a, k), with_kwargs=True),
                block.register_forward_hook(lambda _m, _a, out, i=layer: leave(i, given.pop(i), out)),  # type: ignore[arg-type]
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode without gradients; afterwards the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def run_decoder(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Hidden states after the last norm: [B, T, D]. The head is not run.

    Raises TeacherError, naming the family, when its decoder cannot be run by itself.
    """
    ids_BT = ids_BT.to(embedding_weight(model).device)
    try:
        return model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
    except BUILD_ERRORS as error:
        raise TeacherError(
            f"the decoder of the model family {model.config.model_type!r} cannot be run ({brief(error)}). "
            "Use a decoder-only teacher, or a `pretrained` student."
        ) from error


def probe_ids(model: PreTrainedModel, length: int) -> Tensor:
    """Fixed token ids [1, length] that any vocabulary has."""
    return (torch.arange(length) * 7919 % len(embedding_weight(model)))[None]


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The token embedding, [V, D]."""
    layer: Any = model.get_input_embeddings()
    return layer.weight


def head_weight(model: PreTrainedModel) -> Tensor:
    """The output head, [V, D]; the token embedding itself where they are tied."""
    layer: Any = model.get_output_embeddings()
    return layer.weight


def edit_config(config: PretrainedConfig, edit: Callable[[dict[str, Any]], None]) -> PretrainedConfig:
    """A new config whose decoder section was changed by `edit`, read in the way a saved config.json is.

    The decoder section is the whole config, or the nested one (`text_config`) where a family nests it.
    Raises the errors of the family (BUILD_ERRORS) when it refuses the settings.
    """
    text = config.get_text_config()
    values = config.to_dict()
    section = next((key for key in config.sub_configs if getattr(config, key, None) is text), None)
    edit(values if section is None else values[section])
    new = type(config).from_dict(values)
    new.name_or_path = ""
    return new


def key_of(config: PretrainedConfig, name: str) -> str:
    """The key that a family uses for a common setting: `num_hidden_layers` is `n_layer` in GPT-2."""
    return type(config.get_text_config()).attribute_map.get(name, name)


def per_layer_keys(values: dict[str, Any], num_layers: int) -> list[str]:
    """Keys of a decoder section that hold one entry per layer (`layer_types` and the like)."""
    return [
        key
        for key, value in values.items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers and key not in NOT_PER_LAYER
    ]
