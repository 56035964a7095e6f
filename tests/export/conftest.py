"""A tiny model and a card to go with it."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from limbeck.models.card import Card
from tests import tiny


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tiny_tokenizer


@pytest.fixture
def model() -> PreTrainedModel:
    model = tiny.build_model("gemma2")
    model.generation_config.max_new_tokens = 7
    return model


@pytest.fixture
def card() -> Card:
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
