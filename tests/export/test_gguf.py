from __future__ import annotations

import copy
import dataclasses
import json
import os
import resource
import stat
import sys
import weakref
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM

from limbeck.errors import BudgetError, MissingExtra, TeacherError
from limbeck.export import gguf
from limbeck.export.gguf import QUANTS, write_gguf
from limbeck.export.gguf_tokens import caveat, read_tokens
from limbeck.models.gguf_header import read_header
from limbeck.models.gguf_import import resolve_model
from limbeck.models.llamacpp import LlamaLM
from limbeck.text.tokenizer import load_tokenizer
from limbeck.types import Sampling
from tests import tiny
from tests.export import gguf_models as small

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from limbeck.models.hf import HfLM

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gguf", "cyllama", "accelerate")),
    reason="the packages of limbeck[export,llamacpp,gguf] are not installed",
)
IDS = (np.arange(100) * 7919 % tiny.VOCAB).astype(np.int32)  # longer than windows and than Llama 3.1's first context


def their_logits(lm: HfLM, ids: np.ndarray = IDS) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float()


def kl(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean KL(p || q) in nats."""
    p, q = (logits.double().log_softmax(-1) for logits in (p_TV, q_TV))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", small.MODELS)
def test_llama_cpp_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    lm = small.build(name)
    write_gguf(tmp_path, lm, quant="f32")
    exported, ours_TV = LlamaLM.open(tmp_path), their_logits(lm)
    logits_TV = exported.logits(IDS)
    assert logits_TV.shape == (100, tiny.VOCAB)
    assert kl(ours_TV, logits_TV) < 2e-6  # what 16-bit floats in llama.cpp's cache leave; a wrong tensor gives > 0.01
    reply = exported.generate([IDS[:5]], Sampling(temperature=0, max_tokens=24))[0][0]
    theirs = lm.generate([IDS[:5]], Sampling(temperature=0, max_tokens=24))[0][0]
    same = next((i for i, (a, b) in enumerate(zip(reply.ids, theirs.ids, strict=False)) if a != b), len(theirs.ids))
    if same < len(theirs.ids):  # only where two tokens are as likely
        best = their_logits(lm, np.concatenate([IDS[:5], theirs.ids[:same]]))[-1].topk(2).values
        assert best[0] - best[1] < 0.02
    else:
        assert (reply.text, reply.finish_reason) == (theirs.text, theirs.finish_reason)


BOUNDS = {"f16": 2e-5, "bf16": 5e-4, "q8_0": 5e-3, "q6_k": 0.02, "q5_k_m": 0.1, "q4_k_m": 0.5, "q4_0": 0.5}


@pytest.mark.parametrize("quant", BOUNDS)
def test_quantized_files_are_near_and_smaller(quant: str, tmp_path: Path) -> None:
    lm = small.build("llama")
    write_gguf(tmp_path, lm, quant=quant)
    found = kl(their_logits(lm), LlamaLM.open(tmp_path).logits(IDS))
    assert 0 < found < BOUNDS[quant]
    header = read_header(tmp_path / "model.gguf")
    assert header.values["general.file_type"] == QUANTS[quant].file_type
    exact = sum(tensor.numel() for tensor in lm.model.parameters()) * 4
    assert (tmp_path / "model.gguf").stat().st_size < exact * (0.6 if "16" in quant else 0.45) + 20_000
    assert {path.name for path in tmp_path.iterdir()} == {
        *("Modelfile", "model.gguf", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }


@pytest.mark.slow
def test_fewer_bits_are_smaller_and_further_away(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.08}
    lm, found = small.build("llama", **wide), []  # K-quants need rows of 256
    for quant in ("q8_0", "q6_k", "q5_k_m", "q4_k_m"):
        write_gguf(tmp_path, lm, quant=quant)
        size = (tmp_path / "model.gguf").stat().st_size
        found.append((size, kl(their_logits(lm), LlamaLM.open(tmp_path).logits(IDS))))
    sizes, divergences = zip(*found, strict=True)
    assert sorted(sizes, reverse=True) == list(sizes) and sizes[-1] < 0.65 * sizes[0]
    assert sorted(divergences) == list(divergences) and divergences[-1] < 0.5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
def test_a_second_reader_sees_the_same_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    # transformers takes these from the families' own models, whatever the file says
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    fixed = {"qwen3": {"head_dim": 128}, "gemma2": {"query_pre_attn_scalar": 256, "head_dim": 256, **caps}}
    lm = small.build(
        name, tokenizer=small.bpe("qwen2" if "qwen" in name else "smollm"), vocab_size=450, **fixed.get(name, {})
    )
    write_gguf(tmp_path, lm, quant="f32")
    folder = resolve_model(str(tmp_path / "model.gguf"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits_TV = model(torch.from_numpy(IDS.astype(np.int64))[None]).logits[0]
    torch.testing.assert_close(logits_TV, their_logits(lm), rtol=1e-4, atol=2e-4)
    theirs = load_tokenizer(folder)
    for text in small.HARD[:-1]:  # it composes accents of any Qwen 2 file
        assert theirs(text)["input_ids"] == lm.tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("split", [*small.SPLITS, "sentencepiece", "sentencepiece with a space in front"])
def test_llama_cpp_makes_the_same_tokens(split: str, tmp_path: Path) -> None:
    tokenizer = small.bpe(split) if split in small.SPLITS else small.spm(prefix="space" in split)
    write_gguf(tmp_path, small.build("llama", tokenizer=tokenizer, vocab_size=len(tokenizer)), quant="f16")
    exported = LlamaLM.open(tmp_path)
    for text in small.HARD:
        assert exported.llama_tokens(text) == tokenizer(text)["input_ids"], text
    header = read_header(tmp_path / "model.gguf")
    assert header.values["tokenizer.ggml.pre"] == (split if split in small.SPLITS else "default")
    assert exported.tokenizer_hash == small.build("llama", tokenizer=tokenizer).tokenizer_hash
    assert exported.model.get_default_chat_template() == tokenizer.chat_template


def test_padding_rows_of_a_head_are_left_out(tmp_path: Path) -> None:
    lm = small.build("llama", vocab_size=512)
    write_gguf(tmp_path, lm, quant="f32")
    exported = LlamaLM.open(tmp_path)
    assert exported.model.n_vocab == exported.vocab == lm.vocab == tiny.VOCAB
    assert kl(their_logits(lm)[:, : tiny.VOCAB], exported.logits(IDS)) < 2e-6


def test_tokens_that_end_a_reply_and_facts_of_the_model(tmp_path: Path) -> None:
    lm = small.build("llama")
    lm.model.generation_config.eos_token_id = [7, 2]
    write_gguf(tmp_path, lm, quant="q8_0")
    header = read_header(tmp_path / "model.gguf")
    assert LlamaLM.open(tmp_path).end_ids == [2, 7], "the tokenizer's own first"
    assert (header.arch, header.of_arch("context_length"), header.of_arch("rope.freq_base")) == ("llama", 128, 10000.0)
    assert header.values["tokenizer.ggml.add_bos_token"] is False
    lm.model.generation_config.eos_token_id = [3, 4, 5, 6]
    with pytest.raises(TeacherError, match="5 tokens that end a reply; a GGUF file can name 1 to 3"):
        write_gguf(tmp_path, lm, quant="q8_0")


def test_name_and_licence_come_from_the_folder_of_the_model(tmp_path: Path, tiny_llama: Path) -> None:
    from limbeck.models.hf import HfLM

    folder, out = tmp_path / "My Expert", tmp_path / "out"
    folder.symlink_to(tiny_llama)
    assert "general.license" not in _written(HfLM.open(folder), out)
    folder.unlink()
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# x\n")
    values = _written(HfLM.open(folder), out)
    assert (values["general.name"], values["general.license"]) == ("My Expert", "mit")
    demo = dataclasses.replace(HfLM.open(folder), name="smollm2-135m")  # a name, and no folder
    assert _written(demo, out)["general.license"] == "apache-2.0"
    assert "general.license" not in _written(dataclasses.replace(demo, name="org/on-the-hub"), out)


def test_what_llama_cpp_does_not_do_is_in_the_card(tiny_tokenizer: Any) -> None:
    assert caveat(tiny_tokenizer) == ""
    composed = copy.deepcopy(tiny_tokenizer)
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    assert "combining characters" in caveat(composed)


def test_ollamas_file_names_the_model_and_how_it_is_sampled(tmp_path: Path) -> None:
    lm = small.build("llama")
    write_gguf(tmp_path, lm, quant="q8_0")
    assert (tmp_path / "Modelfile").read_text() == "FROM ./model.gguf\nPARAMETER repeat_penalty 1\n"
    lm.model.generation_config.update(temperature=0.6, top_p=0.95, repetition_penalty=1.05)
    write_gguf(tmp_path, lm, quant="q8_0")
    assert (tmp_path / "Modelfile").read_text().splitlines()[1:] == [
        *("PARAMETER repeat_penalty 1.05", "PARAMETER temperature 0.6", "PARAMETER top_p 0.95")
    ]


def _written(lm: HfLM, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    write_gguf(out, lm, quant="q8_0")
    return read_header(out / "model.gguf").values


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is 'gelu', and llama.cpp uses 'silu'"),
        ("llama", {"rope_parameters": {**small.LINEAR_ROPE, "rope_type": "dynamic"}}, "scaled by 'dynamic'"),
        ("qwen2", {"rope_parameters": small.LLAMA3_ROPE}, "for qwen2 allowed are default, linear"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "a window of 8 tokens"),
        ("mistral", {"sliding_window": 16}, "a window of 16 tokens, which llama.cpp ignores"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64, and llama.cpp uses 16 for 4 layers"),
        ("gemma2", {"tie_word_embeddings": False}, "its head is not its embedding"),
        ("gemma3", {"final_logit_softcapping": 5.0}, "it caps logits"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, r"its layers are full_attention.*\(were some taken away"),
    ],
)
def test_settings_that_llama_cpp_would_ignore_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=f"{message}.*safetensors or ONNX"):
        write_gguf(tmp_path, small.build(name, **changes), quant="f16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["gpt2", "granite", "cohere"])
def test_other_families_are_refused_by_name(family: str, tmp_path: Path) -> None:
    from limbeck.models.hf import HfLM

    lm = HfLM.wrap(tiny.build_model(family), tiny.build_tokenizer(), name=family)
    with pytest.raises(TeacherError, match=f"the model family '{family}' is not exported to GGUF; allowed are gemma2"):
        write_gguf(tmp_path, lm, quant="f16")


def changed(**changes: Any) -> Any:
    """The tiny tokenizer with another tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = json.loads(tiny.build_tokenizer().backend_tokenizer.to_str())
    backend |= {key: value for key, value in changes.items() if key != "model"}
    backend["model"] |= changes.get("model", {})
    rust = Tokenizer.from_str(json.dumps(backend))
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token=tiny.END, pad_token=tiny.PAD)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer is .*Lowercase.*allowed are none and NFC"),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            "no known name for .*Whitespace.*known are those of gpt-2, llama-bpe",
        ),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "no known name for"),
        ({"model": {"ignore_merges": True}}, "ignore_merges True"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "its end_of_word_suffix is '</w>'"),
        ({"model": {"byte_fallback": True}}, "has byte_fallback, but does not put ▁ for spaces"),
    ],
)
def test_tokenizers_that_llama_cpp_would_apply_differently_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=f"this tokenizer cannot be part of a GGUF file: .*{message}"):
        read_tokens(changed(**changes), tiny.VOCAB)


def test_tokenizers_with_other_additions_merges_or_flags_are_refused() -> None:
    from tokenizers import AddedToken

    lstrip = tiny.build_tokenizer()
    lstrip.add_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(TeacherError, match="its token '<mask>' has the flag lstrip"):
        read_tokens(lstrip, tiny.VOCAB)
    with pytest.raises(TeacherError, match="llama.cpp would merge .*is a token, and this tokenizer does not"):
        read_tokens(small.spm(all_merges=False), 500)
    single = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": []}
    single["single"] += [{"Sequence": {"id": "A", "type_id": 0}}]
    single |= {"special_tokens": {"[X]": {"id": "[X]", "ids": [9], "tokens": ["x"]}}}
    with pytest.raises(TeacherError, match=r"the tokenizer makes \[9, 67\] of a text whose tokens are \[67\]"):
        read_tokens(changed(post_processor=single), tiny.VOCAB)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lm = small.build("llama")
    lm.model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    with pytest.raises(TeacherError, match=r"blk.1.ffn_up.weight holds 1e\+05, and 16-bit floats end at 65504"):
        write_gguf(tmp_path, lm, quant="f16")
    write_gguf(tmp_path, lm, quant="bf16")
    lm.model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(TeacherError, match=r"blk.1.ffn_up.weight holds values that are not finite"):
        write_gguf(tmp_path, lm, quant="q8_0")


def test_adapters_that_were_not_merged_are_refused(tmp_path: Path) -> None:
    lm = small.build("llama")
    lm.model.model.layers[0].self_attn.register_buffer("lora_A", torch.ones(2, 2))
    with pytest.raises(TeacherError, match=r"self_attn.lora_A has no place.*adapters.*not merged"):
        write_gguf(tmp_path, lm, quant="q8_0")


def test_unknown_kinds_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match="quantization 'q3_k'; allowed are f32, f16, bf16, q8_0, q4_0, q4_k_m"):
        write_gguf(tmp_path, small.build(), quant="q3_k")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "cyllama" else find_spec(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"quant=q6_k \(or llama.cpp's own llama-quantize.*limbeck\[llamacpp\]"):
        write_gguf(tmp_path, small.build(), quant="q6_k")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"exporting to GGUF needs the package 'gguf'.*limbeck\[export\]"):
        write_gguf(tmp_path, small.build(), quant="q8_0")


# ---- llama.cpp's own quantizer, disks, memory ------------------------------------------------------------------------

QUANTIZER = """#!{python}
import sys
import weakref
from cyllama.llama import llama_cpp
source, target, kind, threads = sys.argv[1:]
if kind == "Q5_K_M":
    sys.exit("it failed: no such luck")
settings = llama_cpp.LlamaModelQuantizeParams()
settings.ftype = {{"Q6_K": 18}}[kind]
settings.nthread = int(threads)
llama_cpp.model_quantize(source, target, settings)
"""


def test_a_users_own_quantizer_is_used_where_there_is_no_binding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, here, there, path = small.build(), tmp_path / "here", tmp_path / "there", tmp_path / "bin"
    for folder in (here, there, path):
        folder.mkdir()
    write_gguf(here, lm, quant="q6_k")
    program = path / "llama-quantize"
    program.write_text(QUANTIZER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "cyllama" else find_spec(name))
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    write_gguf(there, lm, quant="q6_k")
    assert (there / "model.gguf").read_bytes() == (here / "model.gguf").read_bytes()
    with pytest.raises(TeacherError, match="llama-quantize failed.*no such luck"):
        write_gguf(there, lm, quant="q5_k_m")
    assert not list(there.glob(".exact*"))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    lm, (soft, hard) = small.build("llama"), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (5_000, 100_000):  # within the head, within the tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(BudgetError, match=r"the disk is full: writing .*model.gguf"):
                write_gguf(tmp_path, lm, quant="f32")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_tensor_at_a_time_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, alive = small.build("llama"), []
    encode = gguf._encode

    def watched(part: Any, kind: str) -> np.ndarray:
        assert all(one() is None for one in alive), "an earlier tensor is still held"
        values = encode(part, kind)
        alive.append(weakref.ref(values))
        return values

    monkeypatch.setattr(gguf, "_encode", watched)
    write_gguf(tmp_path, lm, quant="q8_0")
    assert len(alive) == 29


@pytest.mark.slow
@pytest.mark.model
def test_the_demo_teacher(tmp_path: Path) -> None:
    from limbeck.models.open import open_lm

    lm = open_lm("smollm2-135m", dtype="float32")
    write_gguf(tmp_path, lm, quant="q8_0")
    exported = LlamaLM.open(tmp_path)
    text = "The library opens at nine. def area(r):\n    return 3.14159 * r ** 2\n\nWater boils at 100 degrees because"
    ids = np.array(lm.tokenizer(text)["input_ids"], dtype=np.int32)
    found = kl(their_logits(lm, ids), exported.logits(ids))
    assert found < 0.02
    assert (tmp_path / "model.gguf").stat().st_size < 150e6
    greedy = Sampling(temperature=0, max_tokens=12)
    prompt = np.array(lm.tokenizer("The capital of France is")["input_ids"], dtype=np.int32)
    assert exported.generate([prompt], greedy)[0][0].text == lm.generate([prompt], greedy)[0][0].text
