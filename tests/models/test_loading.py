"""Folders that are not what they say: every kind of damage is a TeacherError that names it, and nothing is random."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import TeacherError
from limbeck.models.loading import load_config, load_model
from limbeck.models.open import open_lm
from limbeck.students.build import load_pretrained
from tests import tiny


def _weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _layers(num):
    return lambda folder: _config(folder, num_hidden_layers=num, layer_types=None)


def _lacking(name):
    return lambda folder: _weights(folder, lambda state: {k: v for k, v in state.items() if name not in k})


def _with(name, tensor):
    return lambda folder: _weights(folder, lambda state: state | {name: tensor})


INCOMPLETE = {
    "no head": (_lacking("lm_head"), "lack lm_head.weight"),
    "no layer 1": (_lacking("layers.1."), r"lack model.layers.1.* and \d+ more"),
    "more layers in the config": (_layers(5), "num_hidden_layers is 5, and its weights have 3"),
    "fewer layers in the config": (_layers(2), "they hold model.layers.2"),
    "a foreign prefix": (
        lambda folder: _weights(folder, lambda state: {f"base.{k}": v for k, v in state.items()}),
        "lack .*they do have base",
    ),
    "embeddings that were resized": (lambda folder: _config(folder, vocab_size=408), "384 x 64 in the file and 408 x"),
    "scales of quantized weights": (
        _with("model.layers.0.mlp.down_proj.weight_scale", torch.ones(64)),
        "they hold model.layers.0.mlp.down_proj.weight_scale",
    ),
    "a bias that the config denies": (
        _with("model.layers.0.self_attn.o_proj.bias", torch.ones(64)),
        "they hold model.layers.0.self_attn.o_proj.bias",
    ),
    "norms that the family does not have": (
        _with("model.layers.0.self_attn.q_norm.weight", torch.ones(16)),
        "they hold model.layers.0.self_attn.q_norm.weight",
    ),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_weights_that_are_missing_or_dropped_are_named(kind, tmp_path):
    spoil, match = INCOMPLETE[kind]
    spoil(tiny.save_folder(tmp_path, "qwen2"))
    with pytest.raises(TeacherError, match=match):
        open_lm(tmp_path, dtype="float32")
    with pytest.raises(TeacherError, match=match):
        load_pretrained(tmp_path)


HARMLESS = {
    "frequencies": (_with("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)), False),
    "another tower": (_with("vision_tower.patch.weight", torch.ones(8, 8)), True),
    "several tokens at once": (_with("mtp.layers.0.weight", torch.ones(8, 8)), True),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_weights_of_other_parts_are_told(kind, tmp_path):
    spoil, told = HARMLESS[kind]
    spoil(tiny.save_folder(tmp_path, "qwen2"))
    notes = open_lm(tmp_path, dtype="float32").notes
    assert bool(notes) is told and all("1 weights belong to parts that are not used" in note for note in notes)


def test_layers_that_predict_more_tokens_are_parts_of_their_own(tmp_path):
    tiny.save_folder(tmp_path, "qwen2")
    _with("model.layers.3.mlp.down_proj.weight", torch.ones(8, 8))(tmp_path)
    _config(tmp_path, num_nextn_predict_layers=1)
    assert len(open_lm(tmp_path, dtype="float32").notes) == 1


def test_tied_weights_are_not_missing(tmp_path):
    assert open_lm(tiny.save_folder(tmp_path, "llama"), dtype="float32").notes == ()


def _header(change):
    """A file whose head was changed: what it says of its tensors is a lie."""

    def spoil(folder):
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8 : 8 + size])
        new = json.dumps(change(head)).encode()
        file.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + size :])

    return spoil


def _entry(head, **values):
    name = next(name for name in head if name != "__metadata__")
    return head | {name: head[name] | values}


def _bytes(change):
    def spoil(folder):
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return spoil


DAMAGED = {
    "empty": _bytes(lambda raw: b""),
    "cut in its head": _bytes(lambda raw: raw[:100]),
    "cut in its data": _bytes(lambda raw: raw[:5000]),
    "more data than it says": _bytes(lambda raw: raw + b"more"),
    "a head as long as the world": _bytes(lambda raw: struct.pack("<Q", 2**63) + raw[8:]),
    "a head that is no JSON": _bytes(lambda raw: raw[:8] + b"#" + raw[9:]),
    "a pointer of git-lfs": _bytes(lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "a page of HTML": _bytes(lambda raw: b"<html>not found</html>"),
    "a type that is none": _header(lambda head: _entry(head, dtype="F7")),
    "a negative size": _header(lambda head: _entry(head, shape=[-1, 2])),
    "sizes beyond the data": _header(lambda head: _entry(head, shape=[2**40, 2**20])),
    "offsets that overlap": _header(lambda head: _entry(head, data_offsets=[0, 4])),
    "a list for a head": _header(lambda head: [head]),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_lying_files_are_told(kind, tmp_path):
    DAMAGED[kind](tiny.save_folder(tmp_path, "qwen2"))
    with pytest.raises(TeacherError, match="git-lfs" if "git-lfs" in kind else "model.safetensors is not opened"):
        open_lm(tmp_path)
    with pytest.raises(TeacherError):
        load_pretrained(tmp_path)


CONFIGS = {
    "too deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a list": "[]",
    "cut short": '{"model_type": "qw',
    "no family": '{"model_type": "never-heard-of"}',
    "negative": {"hidden_size": -64},
    "nothing": {"num_attention_heads": 0},
    "words for numbers": {"num_hidden_layers": "three"},
    "heads that do not divide": {"num_attention_heads": 5, "num_key_value_heads": 3},
    "a null": {"vocab_size": None},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_lie_are_told(kind, tmp_path):
    tiny.save_folder(tmp_path, "qwen2")
    values = CONFIGS[kind]
    if isinstance(values, str):
        (tmp_path / "config.json").write_text(values)
        with pytest.raises(TeacherError):
            load_config(str(tmp_path), name="it")
    else:
        _config(tmp_path, **values)
    with pytest.raises(TeacherError):
        open_lm(tmp_path)


def test_the_message_of_a_student_speaks_of_a_student(tmp_path):
    with pytest.raises(TeacherError, match="the student 'mine' cannot be opened"):
        load_model(str(tmp_path / "nothing"), name="mine", dtype=torch.float32, who="student")
