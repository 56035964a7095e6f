from __future__ import annotations

import json

import pytest
import torch

from limbeck.errors import TeacherError
from limbeck.students.pretrained import load_pretrained


def test_opens_a_folder_in_float32(build, tmp_path):
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    student = load_pretrained(tmp_path)
    assert student.dtype == torch.float32
    assert not student.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor.float())


def test_pickled_weights_are_never_opened(build, tmp_path):
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"pickled weights only \(pytorch_model.bin\).*safetensors"):
        load_pretrained(tmp_path)


def test_code_in_a_folder_is_not_run(build, tmp_path):
    build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(TeacherError, match="trust_remote_code"):
        load_pretrained(tmp_path)


def test_no_such_model(tmp_path):
    with pytest.raises(TeacherError, match=r"cannot be opened.*Allowed are a hub id"):
        load_pretrained(tmp_path / "nothing")
    tmp_path.joinpath("config.json").write_text("{")
    with pytest.raises(TeacherError, match="cannot be opened"):
        load_pretrained(tmp_path)
