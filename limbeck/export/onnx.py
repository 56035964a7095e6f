"""ONNX files that onnxruntime runs: the whole model with its key/value cache, traced by torch's own exporter.

Inputs and outputs have the names that Optimum and transformers.js use:

    input_ids, position_ids     int64 [batch, sequence]
    attention_mask              int64 [batch, past + sequence], 0 where there is padding
    past_key_values.N.key|value fp32  [batch, kv heads, past, head size], past 0 in the first call
    logits                      fp32  [batch, sequence, rows of the head]
    present.N.key|value         fp32  [batch, kv heads, past + sequence, head size]

Attention is onnxruntime's own operator (GroupQueryAttention), which keeps its cache in one place: whoever binds the
same memory to `past` and `present` pays for no copy, and that memory may be longer than what is in it, since lengths
are those of attention_mask. It takes several tokens after a past only for a batch of one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import MissingExtra, RecipeError, TeacherError
from limbeck.models import attention
from limbeck.models.hf import attending

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx_ir as ir
    from transformers import PreTrainedModel

    from limbeck.models.attention import ScoreRule
    from limbeck.models.hf import HfLM

NAME = "limbeck_onnx"
OPSET = 23  # the first with RMSNormalization and RotaryEmbedding; onnxruntime 1.23 runs it
BITS = {"fp32": 32, "int8": 8, "int4": 4}
"""What `quant` may be. There is no fp16: onnxruntime's CPU has next to no kernels for it. There are no 8-bit
activations measured once for all inputs ("dynamic int8"): they ruined every small model that was tried."""

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
LARGEST_FILE = 1_900_000_000
"""Bytes of weights that still go into model.onnx itself: protobuf ends at 2 GiB."""

TOLERANCE = {32: 2e-3, 8: 0.2, 4: 1.0}
"""Mean error of logits in units of their spread beyond which an export is refused, by bits. It catches graphs that
compute something else; how good a quantised model is, held-out text must say."""


def write_onnx(folder: Path, lm: HfLM, *, quant: str) -> None:
    """Write model.onnx (beyond 1.9 GB with model.onnx.data), config, generation config and tokenizer into `folder`.

    quant: fp32; int8: weights and embeddings in blocks of 32 with one scale each; int4: the same with 4 bits, but
    embeddings and head with 8. Computed in fp32, whatever the model is stored in. The model itself is not changed.
    Raises TeacherError, naming the family, when its graph cannot be traced or does not reproduce its logits;
    RecipeError for another `quant`; MissingExtra without the packages.
    """
    if quant not in BITS:
        raise RecipeError(f"quant is {quant!r}; allowed for ONNX are {', '.join(BITS)}.")
    require_packages()
    from limbeck.export import onnx_graph

    model = _in_float(lm.model)
    with quiet():
        graph = trace(model)
        onnx_graph.tidy(graph)
        if BITS[quant] < 32:
            onnx_graph.quantise(graph, BITS[quant])
        onnx_graph.save(graph, folder / MODEL_FILE, DATA_FILE, LARGEST_FILE)
    del graph
    prove(folder, model, BITS[quant])
    model.config.to_json_file(folder / "config.json", use_diff=False)
    if lm.model.generation_config is not None:
        lm.model.generation_config.to_json_file(folder / "generation_config.json")
    lm.tokenizer.save_pretrained(folder)


def require_packages() -> None:
    """Raise MissingExtra unless all that writes and reads ONNX is installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtra(package, "export", "ONNX export")


def _in_float(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself when it is fp32 on the CPU, else a copy that is."""
    if model.dtype == torch.float32 and model.device.type == "cpu":
        return model
    return copy.deepcopy(model).to("cpu").float()  # type: ignore[arg-type]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's progress, advice and warnings reach nobody; its errors do."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- tracing ---------------------------------------------------------------------------------------------------------


def trace(model: PreTrainedModel) -> ir.Model:
    """The model as a graph, all lengths and the batch dynamic. Raises TeacherError when it cannot be traced."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    batch, sequence, past = 2, 3, 5  # all different and none of them 1: equal lengths would be taken for one
    inputs = (
        torch.zeros(batch, sequence, dtype=torch.int64),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        torch.arange(past, past + sequence)[None].repeat(batch, 1),
        [torch.zeros(batch, heads, past, size) for _ in names],
    )
    any_length = torch.export.Dim.DYNAMIC
    whole = {0: any_length, 1: any_length}
    shapes = {"input_ids": whole, "attention_mask": whole, "position_ids": whole}
    try:
        with torch.no_grad(), _attention(model):
            program = torch.onnx.export(
                _Decoder(model).eval(),
                inputs,
                dynamo=True,
                dynamic_shapes={**shapes, "past": [{0: any_length, 2: any_length}] * len(names)},
                opset_version=OPSET,
                verbose=False,
                input_names=[*shapes, *(f"past_key_values.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
            )
    except (torch.onnx.OnnxExporterError, ValueError, TypeError, AttributeError) as error:
        raise TeacherError(_refusal(model, str(error.__cause__ or error).strip().split("\n")[0])) from error
    return program.model  # type: ignore[union-attr]


def _attention(model: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """Inside, the model's attention is the operator; afterwards the model is as it was."""
    attention.register(NAME, _operator)
    return attending(model, NAME)


class _Cache:
    """What one traced forward reads and leaves: past keys and values, the mask as a bias on scores, present ones."""

    def __init__(self, past: list[Tensor], attention_mask: Tensor, sequence: int) -> None:
        self.past, self.sequence = past, sequence
        self.batch, self.total = attention_mask.shape
        # The lowest number, not minus infinity: a row of padding sees nothing, and its softmax must not be NaN.
        self.low = torch.finfo(torch.float32).min
        padding = (1 - attention_mask.float()) * self.low
        bias = padding[:, None, None, :].expand(self.batch, 1, sequence, self.total)
        self._biases: dict[int | None, Tensor] = {None: bias}
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

    def bias(self, window: int | None) -> Tensor:
        """[batch, 1, sequence, total]: lowest where a key is padding or further back than a sliding window reaches.
        (The operator masks the future; its own windows have had different lengths in different versions.)"""
        if window is not None and window not in self._biases:
            rows = torch.arange(self.sequence)[:, None] + (self.total - self.sequence)
            far = torch.arange(self.total)[None, :] <= rows - window
            self._biases[window] = torch.where(far[None, None], self.low, self._biases[None])
        return self._biases[window]


class _Decoder(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = _Cache(past, attention_mask, input_ids.shape[1])
        out = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, limbeck_cache=cache)
        if sorted(cache.present) != list(range(len(past) // 2)):
            raise ValueError("its layers do not all attend through transformers' attention interface")
        return (out.logits, *(tensor for layer in sorted(cache.present) for tensor in cache.present[layer]))


def _operator(
    module: Any, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule, passed: dict[str, Any]
) -> Tensor:
    """Attention as one node of the graph. query [B, heads, T, d], key and value [B, kv heads, T, d]; returns
    [B, T, heads, d]. Raises ValueError for what the operator cannot do."""
    cache: _Cache | None = passed.get("limbeck_cache")
    unknown = [name for name, it in passed.items() if isinstance(it, Tensor) and name not in HARMLESS]
    if cache is None or unknown or passed.get("is_causal") is False:
        raise ValueError(f"its attention takes {', '.join(unknown) or 'no cache'}, which cannot be exported")
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]
    if value.shape[-1] != size or size % 8:
        raise ValueError(f"its attention heads are {size} and {value.shape[-1]} wide; both must be one multiple of 8")
    layer, total = module.layer_idx, cache.total
    flat = [tensor.transpose(1, 2).reshape(batch, length, -1) for tensor in (query, key, value)]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if rule.scale is not None:
        attributes["scale"] = float(rule.scale)
    if rule.softcap is not None:
        attributes["softcap"] = float(rule.softcap)
    present = (batch, kv_heads, total, size)
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            *flat,
            *cache.past[2 * layer : 2 * layer + 2],
            torch.full((batch,), total - 1, dtype=torch.int32),  # last place of each sequence
            torch.full((1,), total, dtype=torch.int32),
            *(None, None, None),  # rotations are the model's own
            cache.bias(rule.window),
        ],
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[(batch, length, heads * size), present, present],
        version=1,
    )
    cache.present[layer] = (present_key, present_value)
    return out.reshape(batch, length, heads, size)


HARMLESS = ("position_ids", "cache_position")
"""Tensors that models pass to any attention and that attention without packing does not read."""


# ---- proof -----------------------------------------------------------------------------------------------------------


def prove(folder: Path, model: PreTrainedModel, bits: int) -> None:
    """Run the written file on two rows of different length, at once and token by token behind a cache, and raise
    TeacherError unless its logits are the model's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    past_names = [each.name for each in session.get_inputs()[3:]]
    shape = session.get_inputs()[3].shape
    length, pad, prompt = 9, 2, 6
    vocab = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    ids = (np.arange(2 * length, dtype=np.int64) * 7919 % vocab).reshape(2, length)
    mask = np.ones_like(ids)
    mask[1, :pad] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    past = [np.zeros((2, shape[1], 0, shape[3]), np.float32)] * len(past_names)
    parts = []
    for start, end in ((0, prompt), *((at, at + 1) for at in range(prompt, length))):
        feed = {
            "input_ids": ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
            **dict(zip(past_names, past, strict=True)),
        }
        logits, *past = session.run(None, feed)
        parts.append(torch.from_numpy(np.asarray(logits)))
    with torch.no_grad():
        rows = [model(torch.from_numpy(row[skip:])[None]).logits[0] for row, skip in zip(ids, (0, pad), strict=True)]
    theirs = torch.cat(rows)
    found = torch.cat(parts, 1)
    ours = torch.cat([found[0], found[1, pad:]])
    error = (ours - theirs).abs().mean() / theirs.std().clamp_min(1e-6)
    if not error < TOLERANCE[bits]:
        raise TeacherError(_refusal(model, f"its logits differ by {error:.3g} of their spread"))


def _refusal(model: PreTrainedModel, why: str) -> str:
    return (
        f"the model family {model.config.model_type!r} cannot be exported to ONNX ({why[:300]}). Exported are decoders "
        "whose every layer attends through transformers' attention interface, with heads of one width (Llama, Qwen, "
        "GPT-2, Gemma 2, Granite ...). Export it as safetensors instead."
    )
