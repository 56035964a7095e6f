"""Recipes that are sound."""

import json

import pytest

from limbeck.recipe import Recipe
from tests.recipes import tiny_recipe


@pytest.fixture
def recipe(tiny_llama, text_jsonl) -> Recipe:
    source = json.dumps({"kind": "files", "path": str(text_jsonl), "text": "text"})
    return tiny_recipe(f"teacher.path={tiny_llama}", f"data.source={source}", "data.max_length=64")


@pytest.fixture
def chats(recipe, chat_jsonl) -> Recipe:
    source = json.dumps({"kind": "files", "path": str(chat_jsonl), "messages": "messages"})
    return recipe.override(f"data.source={source}")
