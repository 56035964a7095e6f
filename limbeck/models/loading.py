"""The one door through which a folder of weights becomes a model: nothing in it is random, dropped or of another size
without a word.

transformers fills what a file lacks with random numbers, leaves out what the model has no place for, and raises
whatever its own code or a file's reader happens to raise. Here the first is refused by name, the second refused or
told, and the third is a TeacherError.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import LimbeckError, TeacherError
from limbeck.models.int8 import prepare_for
from limbeck.models.meta_size import BUILDING, refuse_lies, refuse_oversized
from limbeck.models.weights import adapter_only, format_of, pickle_only, pointer_file
from limbeck.text.visible import some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PretrainedConfig, PreTrainedModel

NAMED = 4
"""Weights that a message names."""

HARMLESS = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
"""Ends of names of buffers that older files hold and models make by themselves."""


class Loaded(NamedTuple):
    """A model, and sentences about what its files hold beyond it."""

    model: PreTrainedModel
    notes: tuple[str, ...]


def load_model(
    folder: str, *, name: str, dtype: torch.dtype | str, trust_remote_code: bool = False, who: str = "model"
) -> Loaded:
    """The causal language model of a hub id or a folder. `name` is what its user called it, `who` what it is to them.

    Raises TeacherError where there is none, where it is another kind of folder, where its files are damaged or do not
    fit its config, and where weights are missing or would be left out that the model computes with; MissingExtra for
    quantized weights without the package that reads them.
    """
    refuse_folder(Path(folder))
    refuse_oversized(folder, trust_remote_code=trust_remote_code)
    try:
        with BUILDING:
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, with what to do
            )
    except (LimbeckError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file or a config that lies reaches any line of transformers
        raise TeacherError(
            f"the {who} {name!r} cannot be opened: {brief(error)}. Allowed are a hub id, a folder with config.json "
            "and safetensors weights, a .gguf file, or smollm2-135m. Files that are damaged must be taken anew."
        ) from error
    model, info = found
    return Loaded(model, check_loading(model, info, f"the {who} {name!r}"))


def load_config(folder: str, *, name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a hub id or a folder. Raises TeacherError where there is none, or none that describes a model."""
    refuse_lies(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # numbers of the wrong kind or size reach any line of a family's config
        raise TeacherError(
            f"the config of {name!r} cannot be read: {brief(error)}. Allowed are a hub id, or a folder with the "
            "config.json of a causal language model."
        ) from error


def refuse_folder(folder: Path) -> None:
    """Raise TeacherError for a folder that is no model of transformers, saying what it is; MissingExtra for quantized
    weights without the package that reads them."""
    prepare_for(str(folder))
    for problem in (adapter_only(folder), pickle_only(folder), pointer_file(folder)):
        if problem:
            raise TeacherError(problem)
    form = format_of(folder)
    if form not in (None, "safetensors"):
        raise TeacherError(
            f"{folder} is a {form} export, whose weights transformers does not open. Here the model itself is needed: "
            "give the artifact that it was exported from. limbeck.open_lm opens exports."
        )


def check_loading(model: PreTrainedModel, info: Mapping[str, Any], who: str) -> tuple[str, ...]:
    """What transformers says of a loading (`output_loading_info`): sentences about weights that belong to other parts
    than this model. Raises TeacherError for weights that are missing, of another size, or left out though the model has
    the part that they belong to (scales of quantized weights, biases, layers beyond the config's)."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if sizes := sorted(info["mismatched_keys"]):
        named = [f"{name} is {_size(file)} in the file and {_size(own)} by the config" for name, file, own in sizes]
        raise TeacherError(
            f"{who} does not fit its config.json: {some(named, NAMED)}. Was the embedding resized, or is the config "
            "another model's? Save both anew together (save_pretrained)."
        )
    if missing:
        more = f" (they do have {some(unexpected, NAMED)}, which it has no place for)" if unexpected else ""
        raise TeacherError(
            f"{who} is not whole: its files lack {some(missing, NAMED)} ({len(missing)} of {len(model.state_dict())} "
            f"weights), which would be random numbers{more}. Take the folder as it was published, or save the model "
            "anew (save_pretrained); config.json must be its own."
        )
    if dropped := [name for name in unexpected if _belongs(name, model)]:
        raise TeacherError(
            f"{who} would not be what its files say: they hold {some(dropped, NAMED)}, which a model of its "
            "config.json does not use (scales of quantized weights, biases, or layers that the config does not count). "
            "Use the config that was published with them, or a folder of weights that are not quantized."
        )
    if unexpected:
        return (
            f"{who}: {len(unexpected)} weights belong to parts that are not used here ({some(unexpected, NAMED)}).",
        )
    return ()


def _belongs(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight that found no place belongs to a part that this model computes with: to one of its modules, or
    into a list of layers. Layers for the prediction of several tokens are parts of their own."""
    if name.endswith(HARMLESS) or name in dict(model.named_buffers()):
        return False
    module: nn.Module = model
    in_layers = False
    for part in name.split(".")[:-1]:
        children = dict(module.named_children())
        if part not in children:
            beyond = isinstance(module, nn.ModuleList) and part.isdecimal() and int(part) >= len(module)
            return in_layers and not (beyond and _predicts_more(model))
        module = children[part]
        in_layers |= isinstance(module, nn.ModuleList)
    return True


def _predicts_more(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "num_nextn_predict_layers", None))


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def brief(error: Exception) -> str:
    """An error of another library on one line, short enough to stand inside one of ours."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 600 else f"{words[:600]} ..."
