"""A model's config.json against its weights, before anything is built of it.

A config is a program in numbers: transformers makes as many layers as it says, whether or not there are weights for
them. So what it says is compared here with the heads of the weights' own files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import TeacherError
from limbeck.models.safetensors_header import LARGEST_CONFIG, read_json, read_shapes, weight_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from limbeck.models.gguf_header import Header
    from limbeck.models.safetensors_header import Shapes

CONFIG = "config.json"
LARGEST_FILE = 2**28
"""Bytes of any JSON in a folder: the tokenizer.json of 260,000 tokens has 35 million."""

LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers", "decoder_layers"})
MOST_LAYERS, MOST_DEPTH = 1024, 64
MOST_EXPERTS = 200_000
"""Of all layers together; the largest models known have 30,000."""

PLAIN, ALONE = 2**16, 2**20
"""A size that is let through whatever the weights are, and one of a config without weights."""
SIZES = re.compile(r"(^|_)(n|num|d)_|(size|dim|dims|layers?|heads?|experts|rank|groups|channels|embd|inner)$")
"""Names of numbers that something is built from."""
NO_SIZES = re.compile(r"_ids?$|token|param|position|context|window|chunk|seq|length|bits|step|bucket")
METADATA = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "attention.head_count": "num_heads",
}
"""Keys of GGUF as configs have them."""
STEERING = ("fusion_config", "kernel_config", "use_kernels", "distributed_config")
"""Keys that change transformers itself, for every model in the process."""
ADVICE = "Config and weights are not of one model: copy both anew. A stranger's config may be crafted."


@dataclass(frozen=True)
class WeightSizes:
    """What the heads of all files of weights say together. `layers`: one more than the largest number that a tensor's
    name has first (0 where none has any)."""

    layers: int
    largest: int
    elements: int
    num_bytes: int


def check_config(folder: Path) -> WeightSizes | None:
    """Refuse a folder whose config.json asks for more than its weights have; what those are, or None where the folder
    has no safetensors. Nothing is built, and no file is read whole but JSON of bounded size.

    Raises TeacherError that says what was found: sizes, a file that is none, a name that leaves the folder."""
    for file in folder.glob("*.json"):
        if file.stat().st_size > LARGEST_FILE:
            raise TeacherError(f"{file} has {file.stat().st_size} bytes; at most {LARGEST_FILE} are read. {ADVICE}")
    config = read_json(folder / CONFIG, LARGEST_CONFIG)
    files = weight_files(folder, config)
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    weights = _sizes(shapes, sum(file.stat().st_size for file in files)) if files else None
    _refuse(folder / CONFIG, config, weights)
    return weights


def refuse_excess(file: Path, header: Header) -> None:
    """The same of a GGUF file, whose metadata is its config, and of which nothing may be 0: llama.cpp ends the process
    where it divides by it. Raises TeacherError."""
    said = {ours: header.of_arch(theirs) for theirs, ours in METADATA.items()}
    if nothing := next((name for name, value in said.items() if value == 0), None):
        raise TeacherError(f"{file} is not believed: its {nothing} is 0. {ADVICE}")
    _refuse(file, said, _sizes(header.shapes, file.stat().st_size))


def _refuse(file: Path, config: dict[str, Any], weights: WeightSizes | None) -> None:
    if found := next(_excess(config, weights), None):
        raise TeacherError(f"{file} is not believed: {found}. {ADVICE}")


def _sizes(shapes: Shapes, num_bytes: int) -> WeightSizes:
    numbers = [re.search(r"(?:^|\.)(\d{1,9})(?:\.|$)", name) for name in shapes]
    return WeightSizes(
        layers=max((int(number[1]) + 1 for number in numbers if number), default=0),
        largest=max((size for shape in shapes.values() for size in shape), default=0),
        elements=sum(map(math.prod, shapes.values())),
        num_bytes=num_bytes,
    )


def _excess(config: dict[str, Any], weights: WeightSizes | None) -> Iterator[str]:
    """What the config has too much of, as the ends of sentences."""
    for key in STEERING:
        if config.get(key):
            yield f"it sets {key}, which is no property of a model"
    layers, text = 1, config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        for key in LAYERS & set(section):
            layers = max(layers, section[key]) if type(section[key]) is int else layers
            if weights is not None and 0 < weights.layers < layers:
                yield f"its {key} is {section[key]}, and its weights have {weights.layers}"
    most = ALONE if weights is None else max(PLAIN, weights.largest)
    for key, value in _numbers(config):
        if not SIZES.search(key) or NO_SIZES.search(key):
            continue
        if key.endswith(("layers", "layer")) and value > MOST_LAYERS:
            yield f"its {key} is {value}; at most {MOST_LAYERS} are built"
        if "experts" in key and value * layers > MOST_EXPERTS:
            yield f"its {key} is {value}, in each of {layers} layers; at most {MOST_EXPERTS} in all are built"
        if value > most:
            yield f"its {key} is {value}; a dimension of its weights has at most {most}"


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number, with the key that it stands under. Raises TeacherError beyond MOST_DEPTH."""
    left: list[tuple[str, Any, int]] = [("", config, 0)]
    while left:
        key, value, depth = left.pop()
        if depth > MOST_DEPTH:
            raise TeacherError(f"{CONFIG} nests deeper than {MOST_DEPTH} levels. {ADVICE}")
        if type(value) is int:
            yield key, value
        elif isinstance(value, dict | list):
            inside = value.items() if isinstance(value, dict) else ((key, each) for each in value)
            left += [(name, each, depth + 1) for name, each in inside]
