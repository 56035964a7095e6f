"""What an ONNX folder must be before onnxruntime may open it: a decoder with a cache, whole, and nothing else.

onnxruntime reads whatever a graph names: files anywhere, memory by address, operators from libraries. So the graph is
read first, without its weights, and everything that a decoder does not need is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_FILE = "model.onnx"
LARGEST_GRAPH = 2**31  # where protobuf ends
MOST_NODES = 200_000
MOST_LAYERS = 1024
LARGEST_DIMENSION = 2**24
MOST_CACHE_BYTES = 2**26
"""Bytes of keys and values for one token; the largest models known need some 4 MiB."""

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
CONTRIBUTED = frozenset(
    {
        *("GroupQueryAttention", "MultiHeadAttention", "MatMulNBits", "GatherBlockQuantized", "RotaryEmbedding"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"),
        *("FusedMatMul", "FastGelu", "BiasGelu", "QuickGelu", "Gelu"),
    }
)
"""onnxruntime's own operators that decoders are written with. Others of its domain open files (EPContext)."""

ADVICE = "Allowed is what `limbeck export --to onnx` writes, or a decoder with key/value cache of the same inputs."


@dataclass(frozen=True)
class OnnxDecoder:
    """What a checked graph takes: cache `[batch, heads, past, size]` of each of `layers`, logits of `rows` tokens.

    `shares_cache`: past and present may be the same memory, longer than what is in it.
    """

    path: Path
    files: tuple[Path, ...]
    layers: int
    heads: int
    size: int
    rows: int
    shares_cache: bool

    @property
    def cache_names(self) -> list[str]:
        return [f"{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]


def check(folder: Path) -> OnnxDecoder:
    """Read the graph in `folder` and say what it takes. Raises TeacherError for anything but a decoder with a cache
    whose weights are in this folder and whole."""
    import onnx
    from google.protobuf.message import DecodeError

    path = folder / MODEL_FILE
    if not path.is_file() or path.is_symlink():
        raise TeacherError(f"{folder} has no file {MODEL_FILE}. {ADVICE}")
    if not 64 <= path.stat().st_size < LARGEST_GRAPH:
        raise _refused(path, f"it has {path.stat().st_size:,} bytes; allowed are 64 to {LARGEST_GRAPH - 1:,}")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise _refused(path, f"it is damaged or no ONNX file ({error})") from error
    _check_graph(model, path)
    tensors = [*model.graph.initializer, *_attribute_tensors(model, path)]
    files = {path}
    for tensor in tensors:
        files |= _check_tensor(tensor, path)
    return _describe(model, path, (path, *sorted(files - {path})))


def _refused(path: Path, why: str) -> TeacherError:
    return TeacherError(f"{path} cannot be opened: {why}. {ADVICE}")


def _check_graph(model: Any, path: Path) -> None:
    if not model.ir_version or not model.graph.node or not model.opset_import:
        raise _refused(path, "it is no ONNX model: it has no operators")
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise _refused(path, "it has functions, training parts or sparse weights, which no decoder here needs")
    if len(model.graph.node) > MOST_NODES:
        raise _refused(path, f"it has {len(model.graph.node):,} operators; allowed are {MOST_NODES:,}")
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    if foreign := sorted(domains - DOMAINS):
        raise _refused(path, f"it needs operators of {', '.join(map(repr, foreign))}, which would come from a library")
    contributed = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    if unknown := sorted(contributed - CONTRIBUTED):
        raise _refused(path, f"it has the operators {', '.join(unknown)} of com.microsoft; allowed are decoders' own")


def _attribute_tensors(model: Any, path: Path) -> Iterator[Any]:
    """Tensors inside operators. Graphs inside operators (loops, branches) are refused: a decoder has none."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.sparse_tensors:
                raise _refused(path, f"its operator {node.op_type} has a graph inside (a loop or a branch)")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: Any, path: Path) -> set[Path]:
    """The file that holds the tensor. Its size must be what its shape says; its file must lie in the folder itself."""
    import onnx

    name = tensor.name[:80]
    if any(not 0 <= size <= 2**40 for size in tensor.dims) or tensor.HasField("segment"):
        raise _refused(path, f"the weight {name!r} has the shape {list(tensor.dims)[:8]}")
    bits = _bits(tensor.data_type)
    if bits is None:
        raise _refused(path, f"the weight {name!r} has a type that is not a number ({tensor.data_type})")
    size = -(-math.prod(tensor.dims) * bits // 8)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.external_data:
            raise _refused(path, f"the weight {name!r} is inside and outside of the file")
        given = len(tensor.raw_data) if tensor.HasField("raw_data") else None
        if given is not None and given != size:
            raise _refused(path, f"the weight {name!r} has {given:,} bytes, and its shape says {size:,}")
        return {path}
    entry = {pair.key: pair.value for pair in tensor.external_data}
    location = entry.get("location", "")
    file = path.parent / location
    if not re.fullmatch(r"[\w][\w.-]*", location) or file.is_symlink() or not file.is_file():
        raise _refused(path, f"the weight {name!r} lies in {location[:80]!r}; allowed are files beside {path.name}")
    numbers = [entry.get("offset", "0"), entry.get("length", str(size))]
    if not all(number.isascii() and number.isdigit() and len(number) < 16 for number in numbers):
        raise _refused(path, f"the weight {name!r} lies at {numbers[0][:20]!r}, {numbers[1][:20]!r} bytes long")
    offset, length = map(int, numbers)
    if length != size or offset + length > file.stat().st_size:
        raise _refused(path, f"the weight {name!r} is not whole in {location} (is the file cut short?)")
    return {file}


def _bits(data_type: int) -> int | None:
    """Bits of one number; None for text and unknown types."""
    import onnx

    types = onnx.TensorProto
    if data_type in (types.INT4, types.UINT4):
        return 4
    sizes = {
        64: (types.INT64, types.UINT64, types.DOUBLE),
        32: (types.INT32, types.UINT32, types.FLOAT),
        16: (types.INT16, types.UINT16, types.FLOAT16, types.BFLOAT16),
        8: (types.INT8, types.UINT8, types.BOOL),
    }
    return next((bits for bits, kinds in sizes.items() if data_type in kinds), None)


def _describe(model: Any, path: Path, files: tuple[Path, ...]) -> OnnxDecoder:
    """Inputs and outputs as a decoder has them."""
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    layers = (len(inputs) - 3) // 2
    names = [f"{layer}.{part}" for layer in range(min(layers, MOST_LAYERS)) for part in ("key", "value")]
    plain = ["input_ids", "attention_mask", "position_ids"]
    wanted_in = {*plain, *(f"past_key_values.{name}" for name in names)}
    wanted_out = {"logits", *(f"present.{name}" for name in names)}
    if layers < 1 or set(inputs) != wanted_in or set(outputs) != wanted_out:
        missing = sorted((wanted_in - set(inputs)) | (wanted_out - set(outputs)))[:4] or ["past_key_values.0.key"]
        more = sorted((set(inputs) - wanted_in) | (set(outputs) - wanted_out))[:4]
        found = f"its inputs and outputs are not a decoder's: missing {', '.join(missing)}"
        raise _refused(path, found + (f", unknown {', '.join(name[:40] for name in more)}" if more else ""))
    cached = {name: _sizes(inputs[f"past_key_values.{name}"]) for name in names}
    _, heads, _, size = cached[names[0]] if len(cached[names[0]]) == 4 else (0, 0, 0, 0)
    rows = (_sizes(outputs["logits"]) or [0])[-1]
    same = all(len(each) == 4 and (each[1], each[3]) == (heads, size) for each in cached.values())
    numbers = (heads, size, rows)
    if not same or not all(0 < number <= LARGEST_DIMENSION for number in numbers):
        raise _refused(path, f"its cache has {heads} heads of {size}, its logits {rows} rows, not alike in all layers")
    if layers * heads * size * 8 > MOST_CACHE_BYTES:
        raise _refused(path, f"one token would take {layers * heads * size * 8:,} bytes of cache")
    kinds = {inputs[name].elem_type for name in plain}, {inputs[f"past_key_values.{name}"].elem_type for name in names}
    if kinds != ({7}, {1}) or outputs["logits"].elem_type != 1:  # INT64 and FLOAT
        raise _refused(path, "its ids must be int64 and its cache and logits float32")
    return OnnxDecoder(path, files, layers, heads, size, rows, _shares_cache(model, names))


def _sizes(tensor_type: Any) -> list[int]:
    """The shape, 0 where it is dynamic."""
    return [dimension.dim_value for dimension in tensor_type.shape.dim]


def _shares_cache(model: Any, names: list[str]) -> bool:
    """Whether every layer's cache goes through GroupQueryAttention and nothing else: it updates it in place."""
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    through = {(node.input[3], node.output[1]) for node in nodes} | {(node.input[4], node.output[2]) for node in nodes}
    readers = [name for node in model.graph.node for name in node.input if name.startswith("past_key_values.")]
    wanted = {(f"past_key_values.{name}", f"present.{name}") for name in names}
    windowed = any(each.name == "sliding_window_cache" and each.i for node in nodes for each in node.attribute)
    return through == wanted and len(readers) == len(wanted) and not windowed
