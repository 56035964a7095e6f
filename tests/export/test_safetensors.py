from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.errors import MissingExtra, StoreError, TeacherError
from limbeck.export.safetensors import write_safetensors
from limbeck.models.artifact import read_artifact, read_card, save_artifact, update_card
from limbeck.models.hf import HfLM
from limbeck.models.int8 import num_quantized
from limbeck.system.atomic import verify_dir
from tests import tiny

IDS = torch.arange(12)[None]
SCORES = {
    "teacher": {"perplexity": 9.0, "parameters": 1e6},
    "student": {"kl": 0.25, "agreement": 0.8, "perplexity": 10.5, "ece": float("nan"), "parameters": 5e5},
    "twin": {"kl": 0.5, "agreement": 0.7, "ece": None},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_round_trip_is_bit_equal_with_plain_transformers(tmp_path, model, tokenizer, card):
    path = tmp_path / "artifact"
    artifact = save_artifact(path, model, tokenizer, card)
    loaded, its_tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.config.layer_types == model.config.layer_types
    assert its_tokenizer("some text").input_ids == tokenizer("some text").input_ids
    assert its_tokenizer.chat_template == tokenizer.chat_template
    assert artifact == read_artifact(path)
    assert (artifact.path, artifact.format, artifact.scope) == (path, "safetensors", card.scope)
    assert (artifact.lineage, artifact.recipe_fingerprint) == (card.lineage, card.recipe_fingerprint)
    assert verify_dir(path) is None


def test_files_are_readable_by_all_and_hold_no_pickle(tmp_path, model, tokenizer, card):
    save_artifact(tmp_path / "a", model, tokenizer, card, files={"student.json": "{}"})
    names = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "limbeck.json", "student.json", "MANIFEST.json"} <= set(
        names
    )
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert all(mode & 0o044 == 0o044 for mode in names.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_of_the_file_is_chosen_and_the_model_is_not_changed(tmp_path, model, tokenizer, card, dtype):
    model = model.to(torch.bfloat16)
    save_artifact(tmp_path / "a", model, tokenizer, card, dtype=dtype)
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {dtype}
    assert "lm_head.weight" not in names, "tied weights are stored once"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert loaded.dtype == dtype
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype))


def test_same_model_gives_byte_equal_weights(tmp_path, model, tokenizer, card):
    for name in ("a", "b"):
        save_artifact(tmp_path / name, model, tokenizer, card)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_generation_config_that_transformers_would_refuse_is_kept(tmp_path, model, tokenizer, card):
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    save_artifact(tmp_path / "a", model, tokenizer, card)
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["temperature"] == 0.6
    assert model.generation_config.temperature == 0.6


def damage(path, how):
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    if how == "flipped bit":
        data[-100] ^= 1
    elif how == "truncated":
        data = data[:-10]
    file.write_bytes(data)
    if how == "missing":
        file.unlink()
    if how == "no manifest":
        (path / "MANIFEST.json").unlink()
    if how == "card":
        (path / "limbeck.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped bit", r"model.safetensors is damaged"),
        ("truncated", r"model.safetensors has \d+ bytes instead of"),
        ("missing", r"model.safetensors is missing"),
        ("no manifest", r"no MANIFEST.json"),
        ("card", r"limbeck.json"),
    ],
)
def test_damage_is_named_and_never_blessed(tmp_path, model, tokenizer, card, how, message):
    save_artifact(tmp_path / "a", model, tokenizer, card)
    damage(tmp_path / "a", how)
    with pytest.raises(StoreError, match=message):
        read_artifact(tmp_path / "a")
    with pytest.raises(StoreError, match=message):
        update_card(tmp_path / "a", card)


def test_other_folders_are_refused(tmp_path, model):
    with pytest.raises(StoreError, match="not an artifact"):
        read_artifact(tmp_path / "nothing")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(StoreError, match=r"no limbeck.json.*open_lm"):
        read_artifact(tmp_path / "plain")
    (tmp_path / "old").mkdir()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(StoreError, match=r"pickled weights only \(pytorch_model.bin\)"):
        read_artifact(tmp_path / "old")


def test_card_of_a_later_version_is_refused(tmp_path, model, tokenizer, card, monkeypatch):
    monkeypatch.setattr("limbeck.models.artifact.VERSION", 2)
    save_artifact(tmp_path / "a", model, tokenizer, card)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="version 2.*Update"):
        read_artifact(tmp_path / "a")


def test_update_card_rewrites_the_card_only(tmp_path, model, tokenizer, card):
    path = tmp_path / "a"
    save_artifact(path, model, tokenizer, card, files={"student.json": "{}"})
    before = (path / "model.safetensors").stat().st_ino
    artifact = update_card(path, replace(card, scores=SCORES))
    assert verify_dir(path) is None
    assert (path / "model.safetensors").stat().st_ino == before, "weights are linked, not copied"
    assert (path / "student.json").read_text() == "{}"
    assert artifact.scores["kl"] == 0.25
    assert read_artifact(path).scores["agreement"] == 0.8
    assert read_card(path).scores["twin"] == SCORES["twin"]
    assert read_card(path).scores["student"]["ece"] is None, "what is not finite has no JSON"
    assert "ece" not in artifact.scores
    assert "10.5" in (path / "README.md").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"], "nothing is left beside it"


def test_update_that_fails_changes_nothing(tmp_path, model, tokenizer, card, monkeypatch):
    path = tmp_path / "a"
    save_artifact(path, model, tokenizer, card)

    def fail(_card):
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.models.artifact.render", fail)
    with pytest.raises(KeyboardInterrupt):
        update_card(path, replace(card, scope="another"))
    assert read_card(path) == card
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_saving_again_replaces_the_whole_folder(tmp_path, model, tokenizer, card):
    save_artifact(tmp_path / "a", model, tokenizer, card, files={"old.txt": "x"})
    save_artifact(tmp_path / "a", model, tokenizer, replace(card, name="new"))
    assert not (tmp_path / "a" / "old.txt").exists()
    assert read_card(tmp_path / "a").name == "new"


SCRIPT = """
    import os, resource, signal, sys
    from pathlib import Path
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from limbeck.errors import BudgetError
    from limbeck.models import artifact as export

    old, new = Path(sys.argv[1]), Path(sys.argv[2])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(old), AutoTokenizer.from_pretrained(old)
    card = export.read_card(old)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)

    def killed(where, target):
        setattr(export, where, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        export.save_artifact(target, model, tokenizer, card, dtype=torch.float32)

    def disk_full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            export.save_artifact(new, model, tokenizer, card)
        except BudgetError as error:
            os._exit(5 if "the disk is full" in str(error) else 1)

    for job in (lambda: killed("_set_dtype", old), lambda: killed("write_card", new), disk_full):
        pid = os.fork()
        if pid == 0:
            job()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sorted(p.name[:5] for p in old.parent.iterdir()))
"""


@pytest.mark.slow
def test_kill_and_full_disk_leave_the_old_folder_and_no_half_one(tmp_path, model, tokenizer, card):
    old, new = tmp_path / "old", tmp_path / "new"
    save_artifact(old, model, tokenizer, card)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(old), str(new)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    killed = -signal.SIGKILL
    assert done.stdout.splitlines() == [
        f"{killed} ['.old.', 'old']",  # in the middle: its temporary folder is left
        f"{killed} ['.new.', '.old.', 'old']",
        "5 ['.old.', 'old']",  # the next writer of `new` swept it, and took its own away
    ]
    assert read_card(old) == card
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(old)), logits(model))
    save_artifact(old, model, tokenizer, card)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


# ---- exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(tiny_tokenizer):
    return HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="llama")


@pytest.mark.parametrize("quant", ["float32", "float16", "bfloat16"])
def test_casts(tmp_path, llama, quant):
    write_safetensors(tmp_path, llama, quant=quant)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {getattr(torch, quant)}  # noqa: SIM118
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == quant
    assert llama.dtype == torch.float32


def test_weights_that_a_type_cannot_hold(tmp_path, llama):
    with torch.no_grad():
        llama.model.model.norm.weight[3] = 70_000.0
    with pytest.raises(TeacherError, match=r"model.norm.weight holds 7e\+04, and float16 ends at 6.55e\+04"):
        write_safetensors(tmp_path, llama, quant="float16")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # head tied to the embedding, and not
def test_int8_is_plain_safetensors_that_transformers_reopens(tmp_path, tiny_tokenizer, family):
    model = tiny.build_model(family)
    lm = HfLM.wrap(model, tiny_tokenizer, name=family)
    write_safetensors(tmp_path, lm, quant="int8")
    tiny_tokenizer.save_pretrained(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
    assert not (tmp_path / ".plain").exists()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    eight = [name for name, dtype in kinds.items() if name.endswith("_qdata")]
    assert len(eight) == 7 * 3 and {kinds[name] for name in eight} == {torch.int8}
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == torch.bfloat16
    opened = HfLM.open(tmp_path, dtype="float32")
    assert num_quantized(opened.model) == 21 and num_quantized(model) == 0
    assert opened.fingerprint == HfLM.open(tmp_path, dtype="float32").fingerprint != lm.fingerprint
    ids = np.arange(3, 40, dtype=np.int32)
    p_TV, q_TV = lm.logits(ids).double().log_softmax(-1), opened.logits(ids).double().log_softmax(-1)
    kl = float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean())
    assert 0 < kl < 0.02
    weight = opened.model.model.layers[0].mlp.up_proj.weight.dequantize()
    exact = model.model.layers[0].mlp.up_proj.weight
    step_O1 = exact.abs().amax(-1, keepdim=True) / 127
    assert bool(((weight - exact).abs() <= 0.51 * step_O1).all())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(plain), logits(opened.model))
    before = (tmp_path / "model.safetensors").read_bytes()
    write_safetensors(tmp_path, lm, quant="int8")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_int8_refuses_a_family_without_linear_layers(tmp_path, tiny_tokenizer):
    lm = HfLM.wrap(tiny.build_model("gpt2"), tiny_tokenizer, name="gpt2")
    with pytest.raises(TeacherError, match="'gpt2' has no linear layer that torchao quantizes"):
        write_safetensors(tmp_path, lm, quant="int8")


def test_int8_without_torchao_says_what_to_install(tmp_path, llama, monkeypatch):
    monkeypatch.setattr("limbeck.models.int8.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'torchao'.*limbeck\[export\]"):
        write_safetensors(tmp_path, llama, quant="int8")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}')
    with pytest.raises(MissingExtra, match="opening"):
        HfLM.open(tmp_path)
