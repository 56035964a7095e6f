"""What a folder of weights is, before anything in it is opened."""

import json

import pytest

from limbeck.errors import StoreError
from limbeck.models.weights import adapter_only, checked_format, format_of, pickle_only, weight_bytes
from limbeck.system.atomic import atomic_dir


def artifact(path, form="gguf", **files):
    """A folder that says it is an artifact; nothing in it is a model."""
    with atomic_dir(path) as tmp:
        (tmp / "limbeck.json").write_text(json.dumps({"version": 1, "format": form}))
        for name, text in {"model.gguf": "x", **files}.items():
            (tmp / name).write_text(text)
    return path


def test_the_format_is_what_the_card_says(tmp_path):
    assert checked_format(artifact(tmp_path / "a")) == "gguf"
    assert checked_format(tmp_path) is None and format_of(tmp_path / "nowhere") is None


@pytest.mark.parametrize("form", ["tflite", "", None, 3, ["gguf"], {"gguf": 1}, "x" * 10_000])
def test_unknown_formats(tmp_path, form):
    with pytest.raises(StoreError, match="names the format .{2,60}; this Limbeck opens safetensors, gguf, onnx"):
        format_of(artifact(tmp_path / "a", form))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "{" * 100_000, "null"])
def test_cards_that_cannot_be_read(tmp_path, text):
    (tmp_path / "limbeck.json").write_text(text)
    with pytest.raises(StoreError, match="limbeck.json is not readable"):
        format_of(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "optimizer.pkl", "x.pickle"])
def test_a_pickle_is_refused_wherever_it_lies_and_whether_or_not_it_is_listed(tmp_path, name):
    listed = artifact(tmp_path / "listed", **{name: "cos\nsystem\n"})
    beside = artifact(tmp_path / "beside")
    (beside / ".hidden").mkdir()
    (beside / ".hidden" / name).write_text("cos\nsystem\n")
    for folder in (listed, beside):
        with pytest.raises(StoreError, match=f"holds a pickle .*{name}.* can run code"):
            checked_format(folder)


@pytest.mark.parametrize("change", ["flip", "add", "drop manifest", "drop weights"])
def test_what_is_not_as_it_was_written(tmp_path, change):
    folder = artifact(tmp_path / "a")
    if change == "flip":
        (folder / "model.gguf").write_text("y")
    elif change == "add":
        (folder / "adapter_config.json").write_text("{}")
    elif change == "drop manifest":
        (folder / "MANIFEST.json").unlink()
    else:
        with atomic_dir(folder) as tmp:
            (tmp / "limbeck.json").write_text(json.dumps({"version": 1, "format": "gguf"}))
    with pytest.raises(StoreError, match="damaged|not in the folder's|no MANIFEST|no .gguf file"):
        checked_format(folder)


def test_an_adapter_is_no_model(tmp_path):
    assert adapter_only(tmp_path) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in (adapter_only(tmp_path) or "")


def test_pickles_beside_safetensors_are_never_read_and_pass(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    assert "can run code" in (pickle_only(tmp_path) or "")
    (tmp_path / "model.safetensors").write_text("x")
    assert pickle_only(tmp_path) is None


def test_bytes_of_weights_count_data_beside_a_graph(tmp_path):
    for name in ("model.onnx", "model.onnx.data", "model.onnx_data", "tokenizer.json"):
        (tmp_path / name).write_text("12345")
    assert weight_bytes(tmp_path) == 15
