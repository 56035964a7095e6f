"""A router on an encoder: a tiny random BERT, which still tells different words apart."""

import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from limbeck.errors import StoreError, TeacherError
from limbeck.router.dataset import FitSettings
from limbeck.router.encoder import TextEncoder
from limbeck.router.fit import fit
from limbeck.router.router import Router, write
from limbeck.system.atomic import atomic_dir
from tests.router.routing import cases, costs, prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    path = tmp_path_factory.mktemp("encoder")
    BertModel(BertConfig(vocab_size=384, max_position_embeddings=64, **sizes)).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def test_a_prompt_is_the_mean_of_its_hidden_rows(folder):
    encoder = TextEncoder.open(folder)
    ids = torch.tensor([encoder.tokenizer("what is a vaccine")["input_ids"]])
    with torch.no_grad():
        mean = encoder.model(input_ids=ids).last_hidden_state[0].double().mean(0)
    found = encoder.counts("what is a vaccine")
    assert np.allclose(found.values_M, (mean / mean.norm()).numpy(), atol=1e-5)
    assert found.buckets_M.tolist() == list(range(64)) and encoder.size == 64


@pytest.mark.parametrize("text", ["", "\ud800", "x " * 50_000, "\x00", "🙂" * 300])
def test_any_text_has_a_vector(folder, text):
    assert np.isfinite(TextEncoder.open(folder).counts(text).values_M).all()


@pytest.mark.slow
def test_a_router_on_it_is_fitted_saved_and_opened(folder, tmp_path):
    own = tmp_path / "encoder"
    shutil.copytree(folder, own)
    router = fit(cases(), FitSettings(costs(), encoder=str(own), background=prompts("music", 60))).router
    with atomic_dir(tmp_path / "router") as tmp:
        write(tmp, router)
    opened = Router.open(tmp_path / "router")
    right = 0
    for kind in ("code", "medical", "maths"):
        for text in prompts(kind, 20, seed=1):
            decision = opened.decide(text)
            assert decision == router.decide(text)
            right += max(decision.probabilities, key=decision.probabilities.get) == kind
    assert right >= 40  # of 60; chance is 20
    (own / "config.json").write_text((own / "config.json").read_text() + " ")
    with pytest.raises(StoreError, match="has changed since"):
        Router.open(tmp_path / "router")


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(TeacherError, match="no encoder"):
        TextEncoder.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TeacherError, match="cannot be opened"):
        TextEncoder.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TeacherError, match="pickle"):
        TextEncoder.open(tmp_path)
