"""Models through onnxruntime: the same numbers as transformers, a cache that is written in place, crafted files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from limbeck.errors import MissingExtra, TeacherError
from limbeck.export import onnx_graph
from limbeck.export.onnx import write_onnx
from limbeck.models.hf import HfLM
from limbeck.models.onnx import OnnxLM
from limbeck.models.sampling import write_one
from limbeck.types import Sampling
from tests import tiny

pytestmark = pytest.mark.slow  # one whole run, or one export, stands behind all of it

GREEDY = Sampling(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def source(tiny_folder):
    """A Qwen 2 whose head has rows for no token, and which would like to write them."""
    lm = HfLM.open(tiny_folder("qwen2", num_hidden_layers=2, vocab_size=448), dtype="float32")
    with torch.no_grad():
        lm.model.lm_head.weight[lm.vocab :] *= 10
    return lm


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx")
    write_onnx(path, source, quant="fp32")
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return OnnxLM.open(folder, threads=1)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy to damage, weights outside of the graph."""
    path = tmp_path / "copy"
    shutil.copytree(folder, path)
    onnx_graph.save(ir.load(folder / "model.onnx"), path / "model.onnx", "model.onnx.data", 1000)
    return path


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(3, tiny.VOCAB, length).astype(np.int32)


def logits_of(source, ids):
    with torch.no_grad():
        return source.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :, : source.vocab]


def divergence(reference, other):
    a, b = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).max())


def test_it_is_the_model_that_was_exported(source, lm, folder):
    for length in (1, 5, 128):
        found = lm.logits(prompt(length))
        assert found.shape == (length, source.vocab) and found.dtype == torch.float32
        assert divergence(logits_of(source, prompt(length)), found) <= 1e-9
    assert (lm.vocab, lm.max_context, lm.end_ids) == (source.vocab, source.max_context, source.end_ids)
    assert (lm.tokenizer_hash, lm.name) == (source.tokenizer_hash, str(folder))


def test_a_session_reads_what_it_is_fed_in_any_portions(source, lm):
    ids = prompt(128)
    whole = logits_of(source, ids)
    assert lm.decoder.shares_cache
    for portions in ([1] * 128, [64, 1, 1, 62], [127, 1]):
        session, at = lm.session(), 0
        for size in portions:
            found = session.feed(ids[at : at + size])
            at += size
            assert found.shape == (lm.vocab,) and divergence(whole[at - 1], found) <= 1e-9
        with contextlib.closing(source.session()) as same:
            same.feed(ids)
            assert session.token_bytes == same.token_bytes > 0
        session.close()


def test_sessions_do_not_see_each_other_and_end(lm):
    one, other = lm.session(), lm.session()
    first = one.feed(prompt(9))
    other.feed(prompt(30, seed=1))
    again = lm.session()
    again.feed(prompt(9))
    assert torch.equal(one.feed(prompt(3, seed=2)), again.feed(prompt(3, seed=2)))
    assert torch.equal(lm.session().feed(prompt(9)), first)
    one.close()
    one.close()
    with pytest.raises(TeacherError, match="closed"):
        one.feed(prompt(1))


def test_long_prompts_are_read_in_pieces(lm, monkeypatch):
    ids = prompt(100)
    whole = lm.logits(ids)
    monkeypatch.setattr("limbeck.models.onnx.PIECE", 7)
    torch.testing.assert_close(lm.logits(ids), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lm.session().feed(ids[:98]), whole[97], rtol=1e-3, atol=1e-4)


def test_nothing_beyond_the_model_is_read(lm):
    session = lm.session()
    session.feed(prompt(128))
    with pytest.raises(TeacherError, match="129 tokens.*at most 128"):
        session.feed(prompt(1))
    for ids in (np.array([], np.int32), np.array([-1], np.int32), np.array([448], np.int32)):
        with pytest.raises(TeacherError, match=f"ids from 0 to {lm.vocab - 1}"):
            lm.session().feed(ids)


def test_greedy_replies_are_those_of_transformers(source, lm):
    prompts = [prompt(5), prompt(40, seed=3)]
    for ours, theirs in zip(lm.generate(prompts, GREEDY), source.generate(prompts, GREEDY), strict=True):
        assert ours[0].ids.tolist() == theirs[0].ids.tolist() and ours[0].finish_reason == theirs[0].finish_reason
        assert max(ours[0].ids) < lm.vocab < lm.decoder.rows == 448


def test_draws_repeat_themselves_and_streams_are_replies(lm):
    sampling = Sampling(n=2, max_tokens=6, seed=4)
    one, two = lm.generate([prompt(5)], sampling), lm.generate([prompt(5)], sampling)
    assert [reply.ids.tolist() for reply in one[0]] == [reply.ids.tolist() for reply in two[0]]
    assert one[0][0].ids.tolist() != one[0][1].ids.tolist()
    written = list(write_one(lm, prompt(5), sampling, draw_index=1, top=2))
    assert [each.id for each in written] == one[0][1].ids.tolist() and len(written[0].top) == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_models_write_the_same_way_behind_a_cache(bits, source, folder, copy):
    graph = ir.load(folder / "model.onnx")
    onnx_graph.quantise(graph, bits)
    onnx_graph.save(graph, copy / "model.onnx", "model.onnx.data", 2**30)
    lm = OnnxLM.open(copy, threads=1)
    ids = prompt(60)
    whole, session = lm.logits(ids), lm.session()
    fed = torch.stack([session.feed(ids[at : at + 1]) for at in range(60)])
    assert lm.decoder.shares_cache and divergence(whole, fed) < 1e-3
    assert 1e-9 < divergence(logits_of(source, ids), whole) < (0.02 if bits == 8 else 2)


def test_a_graph_that_copies_its_cache_works_too(lm, copy):
    """What other exporters write: present is not written by GroupQueryAttention itself."""
    graph = ir.load(copy / "model.onnx")
    for index, value in enumerate(list(graph.graph.outputs)):
        if value.name.startswith("present."):
            node = ir.node("Identity", [value])
            graph.graph.append(node)
            name, value.name = value.name, f"{value.name}.inner"
            node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, value.dtype, value.shape
            graph.graph.outputs[index] = node.outputs[0]
    onnx_graph.save(graph, copy / "model.onnx", "other.data", 2**30)
    other = OnnxLM.open(copy, threads=1)
    assert not other.decoder.shares_cache
    session = other.session()
    session.feed(prompt(20))
    session.feed(prompt(2, seed=1))
    ours = lm.session()
    ours.feed(prompt(20))
    ours.feed(prompt(2, seed=1))
    torch.testing.assert_close(session.feed(prompt(1)), ours.feed(prompt(1)), rtol=1e-3, atol=1e-4)


def test_fingerprints_tell_weights_apart(lm, folder, copy):
    assert OnnxLM.open(folder).fingerprint == lm.fingerprint
    data = bytearray((copy / "model.onnx.data").read_bytes())
    before = OnnxLM.open(copy).fingerprint
    data[len(data) // 2] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    assert OnnxLM.open(copy).fingerprint not in (before, lm.fingerprint)


# ---- what must not be opened -----------------------------------------------------------------------------------------


def change(folder, edit):
    """Edit the graph in place, weights untouched."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def external(model):
    return next(each for each in model.graph.initializer if each.external_data)


def entry(tensor, key):
    return next(each for each in tensor.external_data if each.key == key)


def set_entry(key, value):
    return lambda model: setattr(entry(external(model), key), "value", value)


def add_node(*args, **kwargs):
    return lambda model: model.graph.node.append(onnx.helper.make_node(*args, **kwargs))


def a_branch(model):
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))


def a_function(model):
    model.functions.append(onnx.helper.make_function("", "F", [], [], [], [onnx.helper.make_opsetid("", 23)]))


def a_constant_from_elsewhere(model):
    tensor = onnx.TensorProto(data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def wrong_heads(model):
    model.graph.input[5].type.tensor_type.shape.dim[1].dim_value = 3


def huge_cache(model):
    for each in model.graph.input[3:]:
        each.type.tensor_type.shape.dim[1].dim_value = each.type.tensor_type.shape.dim[3].dim_value = 2**20


CRAFTED = {
    "a file elsewhere": (set_entry("location", "/etc/hostname"), "'/etc/hostname'; allowed are files beside"),
    "a file above": (set_entry("location", "../model.onnx.data"), "allowed are files beside"),
    "a file below": (set_entry("location", "sub/model.onnx.data"), "allowed are files beside"),
    "memory by address": (set_entry("location", "*/_ORT_MEM_ADDR_/*"), "allowed are files beside"),
    "a hidden file": (set_entry("location", ".secret"), "allowed are files beside"),
    "a file that is not there": (set_entry("location", "more.data"), "allowed are files beside"),
    "an offset beyond the file": (set_entry("offset", "99999999999"), "not whole"),
    "a negative offset": (set_entry("offset", "-4"), "'-4'"),
    "another length": (set_entry("length", "4"), "not whole"),
    "a shape that is too large": (lambda m: external(m).dims.__setitem__(0, 2**39), "not whole"),
    "a negative shape": (lambda m: external(m).dims.__setitem__(0, -1), "has the shape"),
    "text for weights": (lambda m: setattr(external(m), "data_type", onnx.TensorProto.STRING), "not a number"),
    "a constant from elsewhere": (a_constant_from_elsewhere, "allowed are files beside"),
    "an operator from a library": (add_node("Run", ["x"], ["y"], domain="ai.custom"), "'ai.custom'.*library"),
    "an operator that opens files": (add_node("EPContext", ["x"], ["y"], domain="com.microsoft"), "EPContext"),
    "a branch": (a_branch, "graph inside"),
    "a function": (a_function, "functions"),
    "no cache": (lambda m: m.graph.input.pop(), "inputs and outputs.*missing"),
    "another input": (lambda m: setattr(m.graph.input[2], "name", "token_type_ids"), "unknown token_type_ids"),
    "layers that differ": (wrong_heads, "not alike in all layers"),
    "a cache without end": (huge_cache, "bytes of cache"),
    "ids that are floats": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "must be int64"),
    "no operators": (lambda m: m.graph.ClearField("node"), "no operators"),
    "an operator that does not exist": (add_node("Nonsense", ["logits"], ["y"]), "onnxruntime cannot run"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_graphs_are_refused(name, copy):
    (copy / ".secret").write_bytes(b"0" * 2**20)
    edit, match = CRAFTED[name]
    change(copy, edit)
    with pytest.raises(TeacherError, match=match):
        OnnxLM.open(copy)


def test_weights_behind_a_link_are_refused(copy):
    os.rename(copy / "model.onnx.data", copy.parent / "elsewhere")
    (copy / "model.onnx.data").symlink_to(copy.parent / "elsewhere")
    with pytest.raises(TeacherError, match="allowed are files beside"):
        OnnxLM.open(copy)


def test_damaged_files_are_refused(copy, tmp_path):
    whole = (copy / "model.onnx").read_bytes()
    for text in (b"", b"no model" * 100, whole[: len(whole) // 2], whole[:-3]):
        (copy / "model.onnx").write_bytes(text)
        with pytest.raises(TeacherError, match="cannot be opened"):
            OnnxLM.open(copy)
    (copy / "model.onnx").write_bytes(whole)
    data = (copy / "model.onnx.data").read_bytes()
    (copy / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(TeacherError, match="not whole"):
        OnnxLM.open(copy)
    with pytest.raises(TeacherError, match="no file model.onnx"):
        OnnxLM.open(tmp_path)


def test_settings_beside_the_graph_are_checked(copy):
    for text, match in (("{", "not readable"), ("[1]", "list"), ('{"eos_token_id": "2"}', "ends replies at '2'")):
        (copy / "generation_config.json").write_text(text)
        with pytest.raises(TeacherError, match=match):
            OnnxLM.open(copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    (copy / "config.json").write_text(json.dumps({"text_config": {"n_positions": 10}}))
    lm = OnnxLM.open(copy)
    assert lm.end_ids == [5, 7] and lm.max_context == 10
    (copy / "generation_config.json").unlink()
    (copy / "config.json").unlink()
    lm = OnnxLM.open(copy)
    assert lm.end_ids == [lm.tokenizer.eos_token_id] and lm.max_context is None


def test_without_onnxruntime_the_line_that_installs_it_is_named(folder, monkeypatch):
    monkeypatch.setattr("limbeck.models.onnx.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingExtra, match="'onnxruntime'.*limbeck\\[export\\]"):
        OnnxLM.open(folder)
