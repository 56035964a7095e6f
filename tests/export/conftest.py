"""A tiny model with its own tokenizer and template, and a card to go with it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from limbeck.export.card import Card

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def tokenizer():
    words = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def model():
    config = Gemma2Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    model.generation_config.max_new_tokens = 7
    return model


@pytest.fixture
def card():
    return Card(
        name="tiny-expert",
        scope="Answers about tests.",
        lineage=("teacher org/big (weights 0123)", "pruned to layers 0, 2"),
        recipe_yaml="name: tiny-expert\nscope: 'a `fence` ``` inside'\n",
        recipe_fingerprint="00112233aabbccdd",
        scores={},
        licence="Apache-2.0",
        teacher="org/big",
        data_source="stdlib",
        created="2026-01-02",
        base_model="org/big",
    )
