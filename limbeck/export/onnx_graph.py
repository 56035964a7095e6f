"""What is done to an exported graph before it is written: names, quantised weights, files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 32
"""Weights that share a scale, along the input of a layer: the smallest block that all of onnxruntime's kernels have."""
INT8_ACTIVATIONS = 4
"""`accuracy_level`: products of quantised weights may quantise their input block by block, as it comes. Their error is
far below that of the weights, and they are what makes them fast."""


def tidy(model: ir.Model) -> None:
    """Speaking names for dynamic lengths; nothing left of the machine that it was traced on (paths, source lines)."""
    for value in model.graph.inputs:
        lengths = {1: "sequence_length", 2: "past_sequence_length"}
        lengths = {1: "total_sequence_length"} if value.name == "attention_mask" else lengths
        _name_lengths(value, lengths)
    for value in model.graph.outputs:
        _name_lengths(value, {1: "sequence_length", 2: "total_sequence_length"})
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "limbeck", None


def _name_lengths(value: ir.Value, lengths: dict[int, str]) -> None:
    assert value.shape is not None
    names = {0: "batch_size", **lengths}
    value.shape = ir.Shape(
        [size if isinstance(size, int) else names.get(axis) for axis, size in enumerate(value.shape)]
    )


def save(model: ir.Model, path: Path, data_name: str, largest: int) -> None:
    """Write the graph; beyond `largest` bytes its weights go into a file beside it."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=data_name if weights > largest else None)


# ---- quantisation ----------------------------------------------------------------------------------------------------


def quantise(model: ir.Model, bits: int) -> None:
    """Replace every constant weight of a product, and every embedding looked up by token, by blocks of integers.

    `bits` 8 or 4; embeddings and the head always take 8: they are one matrix in most small models, and it is stored
    once. Weights stay where a block would be wider than they are.
    """
    graph = model.graph
    rows = _last(graph.outputs[0])
    packed: dict[tuple[str, int], tuple[ir.Value, ir.Value]] = {}
    embeddings = {node.inputs[0].name for node in graph if _is_embedding(node)}  # type: ignore[union-attr]
    for node in list(graph):
        if _is_embedding(node):
            _quantise_embedding(graph, node, packed)
        elif (found := _weight(node)) is not None:
            weight, is_transposed = found
            K, N = _sizes(weight, is_transposed)
            if K >= BLOCK:
                is_head = weight.name in embeddings or rows == N
                _quantise_product(graph, node, weight, is_transposed, 8 if is_head else bits, packed)
    model.opset_imports["com.microsoft"] = 1
    _drop_unused(graph)


def _is_constant(value: ir.Value | None, rank: int = 2) -> bool:
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) == rank
    )


def _last(value: ir.Value) -> int:
    """Size of the last axis, 0 where it is dynamic."""
    size = value.shape[-1] if value.shape is not None else 0
    return size if isinstance(size, int) else 0


def _sizes(weight: ir.Value, is_transposed: bool) -> tuple[int, int]:
    """K and N of a constant matrix [K, N], or [N, K] where it is transposed."""
    assert weight.const_value is not None
    first, second = weight.const_value.shape.numpy()
    return (second, first) if is_transposed else (first, second)


def _is_embedding(node: ir.Node) -> bool:
    """A table looked up by token id whose rows are whole blocks."""
    if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] is None:
        return False
    table, ids = node.inputs[0], node.inputs[1]
    return _is_constant(table) and ids.name == "input_ids" and _last(table) % BLOCK == 0


def _weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """The constant matrix of a product, and whether it is stored as [N, K]; None where there is none."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    value = node.inputs[1]
    if node.op_type == "Gemm":
        numbers = {name: attribute.value for name, attribute in node.attributes.items()}
        plain = numbers.get("alpha", 1.0) == numbers.get("beta", 1.0) == 1.0 and not numbers.get("transA", 0)
        return (value, bool(numbers.get("transB", 0))) if plain and _is_constant(value) else None  # type: ignore
    if _is_constant(value):
        return value, False  # type: ignore[return-value]
    turned = value.producer() if value is not None else None
    if turned is not None and turned.op_type == "Transpose" and _is_constant(turned.inputs[0]):
        return turned.inputs[0], True  # type: ignore[return-value]
    return None


def _quantise_product(
    graph: ir.Graph,
    node: ir.Node,
    weight: ir.Value,
    is_transposed: bool,
    bits: int,
    packed: dict[tuple[str, int], tuple[ir.Value, ir.Value]],
) -> None:
    """Turn the node into a product with quantised weights, in place, so that its output keeps its name."""
    blocks, scales = _packed(graph, weight, is_transposed, bits, packed)
    K, N = _sizes(weight, is_transposed)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    inputs = [node.inputs[0], blocks, scales] + ([None, None, bias] if bias is not None else [])
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.attributes.clear()
    numbers = {"K": K, "N": N, "bits": bits, "block_size": BLOCK, "accuracy_level": INT8_ACTIVATIONS}
    for name, number in numbers.items():
        node.attributes.add(ir.AttrInt64(name, number))


def _quantise_embedding(
    graph: ir.Graph, node: ir.Node, packed: dict[tuple[str, int], tuple[ir.Value, ir.Value]]
) -> None:
    """Look rows up in the same blocks that a tied head multiplies with: [V, blocks, 32] gives [..., blocks, 32]."""
    table = node.inputs[0]
    assert table is not None
    blocks, scales = _packed(graph, table, True, 8, packed)
    last = _constant(graph, f"{table.name}.last_axis", np.array([-1], np.int64))
    flat = _constant(graph, f"{table.name}.flat", np.array([0, 0, _last(table)], np.int64))
    wide = ir.node("Unsqueeze", [scales, last])
    gather = ir.node(
        "GatherBlockQuantized",
        [blocks, node.inputs[1], wide.outputs[0]],
        {"gather_axis": 0, "quantize_axis": 2, "block_size": BLOCK, "bits": 8},
        domain="com.microsoft",
    )
    reshape = ir.node("Reshape", [gather.outputs[0], flat])
    graph.insert_before(node, [wide, gather, reshape])
    reshape.outputs[0].dtype, reshape.outputs[0].shape = ir.DataType.FLOAT, node.outputs[0].shape
    ir.convenience.replace_all_uses_with(node.outputs[0], reshape.outputs[0])
    graph.remove(node, safe=True)


def _packed(
    graph: ir.Graph,
    weight: ir.Value,
    is_transposed: bool,
    bits: int,
    packed: dict[tuple[str, int], tuple[ir.Value, ir.Value]],
) -> tuple[ir.Value, ir.Value]:
    """Blocks and scales of a weight as initializers, made once for all nodes that use it."""
    assert weight.name is not None and weight.const_value is not None
    key = (weight.name, bits)
    if key not in packed:
        matrix = weight.const_value.numpy()
        blocks, scales = quantise_blocks(matrix if is_transposed else matrix.T, bits)
        names = f"{weight.name}.int{bits}", f"{weight.name}.scales{bits}"
        packed[key] = _constant(graph, names[0], blocks), _constant(graph, names[1], scales)
    return packed[key]


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def _drop_unused(graph: ir.Graph) -> None:
    """Transposes of what is quantised, then the weights themselves."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def quantise_blocks(weight_NK: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers of `bits` around their middle, in blocks of 32 along K: (uint8 [N, blocks, 32 * bits / 8], fp32 scales
    [N, blocks]); weight = (integer - 2^(bits - 1)) * scale. 4 bits are packed in pairs, the first one low.

    Scales are those of the largest weight of a block; with 4 bits, the best of a few (least squared error).
    """
    N, K = weight_NK.shape
    num = -(-K // BLOCK)
    blocks_NbB = np.zeros((N, num * BLOCK), np.float32)
    blocks_NbB[:, :K] = weight_NK
    blocks_NbB = blocks_NbB.reshape(N, num, BLOCK)
    middle = 2 ** (bits - 1)
    largest_Nb = np.abs(blocks_NbB).max(-1)
    extreme_Nb = np.take_along_axis(blocks_NbB, np.abs(blocks_NbB).argmax(-1)[..., None], -1)[..., 0]
    candidates = [largest_Nb / (middle - 1)]
    if bits == 4:
        candidates += [extreme_Nb / -middle * part for part in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)]
        candidates += [largest_Nb / (middle - 1) * part for part in (0.95, 0.9, 0.85, 0.8)]
    scales_Nb, codes_NbB, least_Nb = candidates[0], None, None
    for scale_Nb in candidates:
        inverse_Nb = np.divide(1.0, scale_Nb, out=np.zeros_like(scale_Nb), where=scale_Nb != 0)
        code_NbB = np.clip(np.rint(blocks_NbB * inverse_Nb[..., None]), -middle, middle - 1)
        error_Nb = np.square(code_NbB * scale_Nb[..., None] - blocks_NbB).sum(-1)
        if codes_NbB is None or least_Nb is None:
            codes_NbB, least_Nb, scales_Nb = code_NbB, error_Nb, scale_Nb.copy()
            continue
        better_Nb = error_Nb < least_Nb
        codes_NbB[better_Nb], least_Nb[better_Nb] = code_NbB[better_Nb], error_Nb[better_Nb]
        scales_Nb[better_Nb] = scale_Nb[better_Nb]
    assert codes_NbB is not None
    stored = (codes_NbB + middle).astype(np.uint8)
    if bits == 4:
        stored = stored[..., 0::2] | stored[..., 1::2] << 4
    return stored, scales_Nb.astype(np.float32)
