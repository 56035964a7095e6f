"""One door for all models: an artifact opens as what its card says, once it was checked."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from limbeck.errors import StoreError, TeacherError
from limbeck.models.artifact import save_artifact
from limbeck.models.card import Card
from limbeck.models.hf import HfLM
from limbeck.models.open import RUNNERS, open_hf, open_lm
from limbeck.models.sampling import write_all
from limbeck.system.atomic import atomic_dir
from limbeck.types import Sampling
from tests import tiny

CARD = Card("a", "", (), "", "", {}, None, "", "", "2026-01-02")


@pytest.fixture
def artifact(tmp_path, tiny_tokenizer):
    save_artifact(tmp_path / "a", tiny.build_model("llama"), tiny_tokenizer, CARD)
    return tmp_path / "a"


def foreign(path, form):
    """An artifact of another format, of which only the card matters here."""
    with atomic_dir(path) as tmp:
        (tmp / "limbeck.json").write_text(json.dumps({"version": 1, "format": form}))
        (tmp / f"model.{form}").write_text("x")
    return path


@pytest.mark.parametrize("form", list(RUNNERS))
def test_another_library_is_imported_only_for_its_format(tmp_path, monkeypatch, form):
    module, name = RUNNERS[form]
    opened = []
    runner = types.SimpleNamespace(open=lambda folder: opened.append(folder) or "it")
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: runner}))
    folder = foreign(tmp_path / "a", form)
    assert open_lm(folder) == "it" and opened == [folder]
    with pytest.raises(TeacherError, match="dtype has no effect"):
        open_lm(folder, dtype="float32")
    with pytest.raises(TeacherError, match=f"is a {form} export, whose weights transformers does not open"):
        open_hf(folder)


def test_an_artifact_is_checked_before_it_is_opened(artifact):
    assert isinstance(open_lm(artifact, dtype="float32"), HfLM)
    data = bytearray((artifact / "model.safetensors").read_bytes())
    data[-50] ^= 1
    (artifact / "model.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match="model.safetensors is damaged"):
        open_lm(artifact)


def test_a_tokenizer_or_adapter_slipped_in_is_refused(artifact):
    (artifact / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match="adapter_config.json is not in the folder's MANIFEST"):
        open_lm(artifact)


def test_a_format_from_the_future(tmp_path):
    with pytest.raises(StoreError, match="names the format 'webgpu'"):
        open_lm(foreign(tmp_path / "a", "webgpu"))


def test_an_adapter_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(TeacherError, match="PEFT adapter.*merge_and_unload"):
        open_lm(tmp_path)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_logits_and_sessions_are_the_models_own(tiny_folder, family):
    lm = open_hf(tiny_folder(family), dtype="float32")
    ids = np.arange(3, 33, dtype=np.int32)
    with torch.no_grad():
        own_TV = lm.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    logits_TV = lm.logits(ids)
    assert logits_TV.shape == (30, lm.vocab) and logits_TV.dtype == torch.float32
    assert torch.allclose(logits_TV, own_TV, atol=2e-4)
    session = lm.session()
    assert torch.allclose(session.feed(ids[:11]), own_TV[10], atol=2e-4)
    for place in range(11, 30):  # beyond gemma's sliding window of 8
        assert torch.allclose(session.feed(ids[place : place + 1]), own_TV[place], atol=2e-4)
    session.close()


def test_a_padded_head_is_cut_to_real_tokens(tiny_folder):
    lm = open_hf(tiny_folder("llama", vocab_size=448), dtype="float32")
    ids = np.array([5, 6, 7], np.int32)
    assert lm.logits(ids).shape == (3, tiny.VOCAB) and lm.session().feed(ids).shape == (tiny.VOCAB,)


def test_sessions_do_not_hear_one_another(tiny_llama):
    lm = open_hf(tiny_llama, dtype="float32")
    one, two = lm.session(), lm.session()
    first_V = one.feed(np.array([5, 6], np.int32))
    two.feed(np.array([9, 9, 9], np.int32))
    assert torch.equal(first_V, lm.session().feed(np.array([5, 6], np.int32)))
    assert torch.allclose(one.feed(np.array([7], np.int32)), lm.logits(np.array([5, 6, 7], np.int32))[-1], atol=1e-4)


def test_written_token_by_token_as_generate_writes(tiny_llama):
    lm = open_hf(tiny_llama, dtype="float32")
    prompts = [np.array([5, 6, 7], np.int32), np.array([9], np.int32)]
    sampling = Sampling(temperature=0, max_tokens=8)
    both = zip(lm.generate(prompts, sampling), write_all(lm, prompts, sampling), strict=True)
    for (batch,), (alone,) in both:
        assert batch.ids.tolist() == alone.ids.tolist() and batch.finish_reason == alone.finish_reason


@pytest.mark.parametrize(
    "path", ["x" * 100_000, f"/tmp/{'x' * 300}", f"a/{'b' * 100_000}", "x/" * 50_000, "\0a", "a\nb"]
)
def test_paths_that_are_none_are_told_in_a_sentence(path):
    with pytest.raises(TeacherError) as caught:
        open_lm(path)
    assert len(str(caught.value)) < 500
