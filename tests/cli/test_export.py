"""`limbeck export`: what it prints, what it passes on, how it fails."""

import json

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.models.artifact import read_card

runner = CliRunner()


def run(monkeypatch, capsys, *args):
    """Through `main`, as a user calls it: exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["limbeck", *map(str, args)])
    try:
        app.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    out = capsys.readouterr()
    return code, out.out, out.err


def test_an_export_and_its_table(tiny_llama, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    code, told, progress = run(
        monkeypatch, capsys, "export", tiny_llama, "--to", "safetensors", "--quant", "float16", "--out", out
    )
    assert code == 0
    assert "KL to source" in told and "0.0001" in told and f"export: {out}" in told
    assert "built-in texts" in progress and "positions" in progress
    assert read_card(out).quant == "float16"


@pytest.mark.slow
def test_json_and_a_bound(tiny_llama, text_jsonl, tmp_path, monkeypatch, capsys):
    words = ("export", tiny_llama, "--to", "safetensors", "--quant", "int8", "--rows", text_jsonl, "--json")
    code, told, _ = run(monkeypatch, capsys, *words, "--out", tmp_path / "a")
    assert code == 0
    found = json.loads(told)
    assert found["quant"] == "int8" and found["text"] == "rows of text.jsonl" and 0 < found["kl"] < found["kl_bound"]
    code, told, err = run(monkeypatch, capsys, *words, "--max-kl", "1e-9", "--out", tmp_path / "b")
    assert code == 12 and json.loads(told)["error"]["type"] == "ExportError" and "max_kl=" in err
    assert not (tmp_path / "b").exists()


def test_words_without_meaning(tiny_llama, monkeypatch, capsys):
    for words, message in (
        (("--to", "gguf", "--quant", "q4_0"), "max_kl must be given for q4_0"),
        (("--to", "tflite"), "it must be one of safetensors, gguf, onnx"),
        (("--to", "onnx", "--quant", "int2"), "must be one of fp32, int8, int4"),
    ):
        code, _, err = run(monkeypatch, capsys, "export", tiny_llama, *words)
        assert code == 3 and message in err
    assert runner.invoke(app.app, ["export", str(tiny_llama)]).exit_code == 2, "--to says the format"
