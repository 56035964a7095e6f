"""Tiny models that speak one language, and held-out rows of text and of chats."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from limbeck.models.hf import HfLM
from limbeck.types import Row
from tests import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def perturbed(lm: HfLM, size: float, seed: int, name: str) -> HfLM:
    """The same model with noise on its weights."""
    model = copy.deepcopy(lm.model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size * parameter.std())
    return HfLM.wrap(model, lm.tokenizer, name=name)


@pytest.fixture(scope="session")
def teacher(tiny_tokenizer: PreTrainedTokenizerBase) -> HfLM:
    return HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="teacher")


@pytest.fixture(scope="session")
def students(teacher: HfLM) -> dict[str, HfLM]:
    """The student is closer to the teacher than its twin."""
    return {"student": perturbed(teacher, 0.03, 1, "student"), "twin": perturbed(teacher, 0.3, 2, "twin")}


@pytest.fixture(scope="session")
def text_rows(tiny_tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """24 plain texts over three topics, every token supervised."""
    out = []
    for number, row in enumerate(tiny.rows(24)):
        ids = np.array([*tiny_tokenizer(row["text"])["input_ids"], 2], dtype=np.int32)
        out.append(Row(f"text{number}", "heldout", row["topic"], row["text"], ids, ((1, len(ids)),), f"text:{number}"))
    return out


@pytest.fixture(scope="session")
def chat_rows(tiny_tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Two conversations of one topic, of which only the reply is supervised."""
    out = []
    for number, chat in enumerate(tiny.chats(2)):
        prompt = tiny_tokenizer.apply_chat_template(chat["messages"][:1], tokenize=False, add_generation_prompt=True)
        start = len(tiny_tokenizer(prompt)["input_ids"])
        ids = np.array(tiny_tokenizer(prompt + chat["messages"][1]["content"])["input_ids"], dtype=np.int32)
        out.append(Row(f"chat{number}", "heldout", "", prompt, ids, ((start, len(ids)),), f"chat:{number}"))
    return out
