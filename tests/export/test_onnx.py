"""Exports to ONNX against the models they were made from, in plain onnxruntime: what another program would see."""

from __future__ import annotations

import json
import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import MissingExtra, RecipeError, TeacherError
from limbeck.export import onnx_graph
from limbeck.export.onnx import write_onnx
from limbeck.models.hf import HfLM
from tests import tiny

pytestmark = pytest.mark.slow  # whole runs

FAMILIES = {"llama": {"num_hidden_layers": 2}, "gpt2": {"n_layer": 2}, "gemma2": {"num_hidden_layers": 2}}
"""What differs between families here: rotations and tied heads; learned positions, biases and another kind of product;
windows, capped scores and logits. (tests/models/test_onnx.py exports Qwen 2.)"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_tokenizer):
    """`exported("llama")`: an LM and the folder of its fp32 export."""
    made = {}

    def export(family):
        if family not in made:
            lm = HfLM.wrap(tiny.build_model(family, **FAMILIES[family]), tiny_tokenizer, name=family)
            folder = tmp_path_factory.mktemp(family)
            write_onnx(folder, lm, quant="fp32")
            made[family] = lm, folder
        return made[family]

    return export


def start(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session, ids, mask, past=None, start=0):
    """logits and the cache, of the columns from `start` on."""
    shape = session.get_inputs()[3].shape
    names = [each.name for each in session.get_inputs()[3:]]
    past = past or [np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)] * len(names)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    feed = {"input_ids": ids[:, start:], "attention_mask": mask, "position_ids": positions[:, start:]}
    logits, *present = session.run(None, {**feed, **dict(zip(names, past, strict=True))})
    return torch.from_numpy(logits), present


def divergence(reference, other):
    """KL of each row in double precision."""
    a, b = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def batch(rows, length, seed=0):
    """Random ids; each row but the first begins with some padding."""
    ids = np.random.default_rng(seed).integers(3, tiny.VOCAB, (rows, length))
    mask = np.ones_like(ids)
    for row in range(1, rows):
        mask[row, : min(row, length - 1)] = 0
    return ids, mask


def reference(model, ids, mask):
    """Logits of each row without its padding, by transformers."""
    with torch.no_grad():
        return [model(torch.from_numpy(row[seen == 1])[None]).logits[0] for row, seen in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    "family",
    [family if family == "llama" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_logits_are_the_models_for_any_batch_and_length(family, exported):
    lm, folder = exported(family)
    session = start(folder / "model.onnx")
    for rows, length in ((1, 1), (1, 40), (3, 7), (4, 2)):
        ids, mask = batch(rows, length)
        logits, _ = run(session, ids, mask)
        for found, wanted, seen in zip(logits, reference(lm.model, ids, mask), mask, strict=True):
            assert float(divergence(wanted, found[seen == 1]).max()) <= 1e-9
            torch.testing.assert_close(found[seen == 1], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_behind_a_cache_is_reading_at_once(family, exported):
    _, folder = exported(family)
    session = start(folder / "model.onnx")
    ids, mask = batch(3, 20)
    whole, _ = run(session, ids, mask)
    _, past = run(session, ids[:, :8], mask[:, :8])
    for end in range(9, 21):
        logits, past = run(session, ids[:, :end], mask[:, :end], past, end - 1)
        assert past[0].shape[2] == end
        seen = mask[:, end - 1] == 1
        torch.testing.assert_close(logits[seen, 0], whole[seen, end - 1], rtol=1e-3, atol=1e-4)


def test_several_tokens_behind_a_cache(exported):
    _, folder = exported("gemma2")
    session = start(folder / "model.onnx")
    ids, mask = batch(1, 30)
    whole, _ = run(session, ids, mask)
    _, past = run(session, ids[:, :11], mask[:, :11])
    logits, _ = run(session, ids, mask, past, 11)
    torch.testing.assert_close(logits, whole[:, 11:], rtol=1e-3, atol=1e-4)


def test_what_is_written_can_be_checked_and_names_no_path_of_ours(exported):
    lm, folder = exported("llama")
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.input][:5] == [
        *("input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value")
    ]
    assert [each.name for each in model.graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    sizes = [each.dim_param or each.dim_value for each in model.graph.input[3].type.tensor_type.shape.dim]
    assert sizes == ["batch_size", 2, "past_sequence_length", 16]
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (folder / "tokenizer.json").is_file()
    assert lm.model.config._attn_implementation == "sdpa"  # the model is as it was


def test_a_tied_head_is_stored_once(exported):
    lm, folder = exported("llama")
    weights = sum(parameter.numel() for parameter in lm.model.parameters())
    assert weights * 4 < (folder / "model.onnx").stat().st_size < weights * 4 + 60_000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 1.0)])
def test_quantised_exports_are_near_and_small(family, bits, most, exported, tmp_path):
    lm, folder = exported(family)
    graph = ir.load(folder / "model.onnx")
    onnx_graph.quantise(graph, bits)
    onnx_graph.save(graph, tmp_path / "model.onnx", "model.onnx.data", 2**30)
    model = onnx.load(tmp_path / "model.onnx")
    products = [node.op_type for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "MatMulNBits")]
    assert set(products) == {"MatMulNBits"} and len(products) >= 9
    names = [each.name for each in model.graph.initializer]
    assert len(names) == len(set(names)) and sum("scales8" in name for name in names) <= len(products)
    ids, mask = batch(3, 40)
    logits, _ = run(start(tmp_path / "model.onnx"), ids, mask)
    found = torch.cat([row[seen == 1] for row, seen in zip(logits, mask, strict=True)])
    error = float(divergence(torch.cat(reference(lm.model, ids, mask)), found).mean())
    assert 1e-7 < error < most
    parameters = sum(each.numel() for each in lm.model.parameters())
    integers = sum(np.prod(each.dims) for each in model.graph.initializer if each.data_type == onnx.TensorProto.UINT8)
    assert integers * 8 / bits > 0.7 * parameters  # a head in 8 bits counts twice, and learned positions not at all


def test_weights_beyond_a_bound_go_into_a_file_beside_it(exported, tmp_path):
    _, folder = exported("llama")
    onnx_graph.save(ir.load(folder / "model.onnx"), tmp_path / "model.onnx", "model.onnx.data", 1000)
    assert (tmp_path / "model.onnx").stat().st_size < 100_000 < (tmp_path / "model.onnx.data").stat().st_size
    ids, mask = batch(2, 9)
    inside, outside = (run(start(path / "model.onnx"), ids, mask)[0] for path in (folder, tmp_path))
    assert torch.equal(inside, outside)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 80), st.sampled_from([4, 8]), st.floats(1e-6, 1e6))
def test_blocks_say_what_they_stand_for(seed, N, K, bits, size):
    """Every weight is within half a step, and blocks of nothing are nothing."""
    weight = (np.random.default_rng(seed).standard_normal((N, K)) * size).astype(np.float32)
    weight[0, :32] = 0
    stored, scales = onnx_graph.quantise_blocks(weight, bits)
    codes = stored if bits == 8 else np.stack([stored & 15, stored >> 4], -1).reshape(N, -1, 32)
    back = ((codes.astype(np.float64) - 2 ** (bits - 1)) * scales[..., None]).reshape(N, -1)
    assert stored.shape == (N, -(-K // 32), 32 * bits // 8) and scales.shape == stored.shape[:2]
    steps = np.abs(back[:, :K] - weight) / np.repeat(np.abs(scales), 32, 1)[:, :K].clip(1e-30)
    assert np.all(back[0, :32] == 0) and np.all(back[:, K:] == 0)
    assert steps.max() <= (0.5001 if bits == 8 else 2.1)  # the best scale may cut the largest weight


def test_the_best_of_some_scales_beats_the_first():
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    stored, scales = onnx_graph.quantise_blocks(weight, 4)
    codes = np.stack([stored & 15, stored >> 4], -1).reshape(64, -1, 32).astype(np.float32) - 8
    blocks = weight.reshape(64, -1, 32)
    plain = np.abs(blocks).max(-1, keepdims=True) / 7
    rounded = np.rint(blocks / plain) * plain
    assert np.square(codes * scales[..., None] - blocks).mean() < 0.8 * np.square(rounded - blocks).mean()


@pytest.mark.slow
def test_families_that_cannot_be_exported_are_refused_by_name(tiny_tokenizer, tmp_path):
    wide = HfLM.wrap(tiny.build_model("llama", head_dim=12, num_hidden_layers=1), tiny_tokenizer, name="wide")
    with pytest.raises(TeacherError, match="'llama' cannot be exported.*multiple of 8"):
        write_onnx(tmp_path, wide, quant="fp32")
    assert wide.model.config._attn_implementation == "sdpa" and not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_refused(exported, tmp_path):
    from limbeck.export.onnx import prove

    lm, folder = exported("llama")
    graph = ir.load(folder / "model.onnx")
    next(node for node in graph.graph if node.op_type == "GroupQueryAttention").attributes.add(
        ir.AttrFloat32("scale", 2.0)
    )
    onnx_graph.save(graph, tmp_path / "model.onnx", "model.onnx.data", 2**30)
    prove(folder, lm.model, 32)
    with pytest.raises(TeacherError, match="'llama' cannot be exported.*differ by"):
        prove(tmp_path, lm.model, 32)


@pytest.mark.slow
def test_nothing_is_said_and_logging_is_as_it_was(tiny_tokenizer, tmp_path, capfd):
    before = logging.root.manager.disable
    lm = HfLM.wrap(tiny.build_model("qwen2", num_hidden_layers=1).bfloat16(), tiny_tokenizer, name="one")
    write_onnx(tmp_path, lm, quant="int8")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "") and logging.root.manager.disable == before
    assert lm.model.dtype == torch.bfloat16


def test_other_quantisations_and_missing_packages_are_named(exported, tmp_path, monkeypatch):
    lm, _ = exported("llama")
    with pytest.raises(RecipeError, match="'q8_0'.*fp32, int8, int4"):
        write_onnx(tmp_path, lm, quant="q8_0")
    monkeypatch.setattr("limbeck.export.onnx.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingExtra, match="'onnxscript'.*limbeck\\[export\\]"):
        write_onnx(tmp_path, lm, quant="fp32")
