"""Labelling in this process: nothing is drawn from numbers that are none, and the row is named."""

import re
from dataclasses import replace

import pytest
import torch

from limbeck.errors import TeacherError
from limbeck.label.local import label_rows, run_label, score
from limbeck.label.plan import store_header, support_spec
from limbeck.models.hf import HfLM
from limbeck.store import TraceStore
from limbeck.types import Callbacks
from tests import tiny
from tests.label.asking import rows_of
from tests.recipes import tiny_recipe

RARE = 200


@pytest.fixture
def teacher(tiny_tokenizer):
    """Opens well: the proof does not meet the one token whose embedding is damaged."""
    lm = HfLM.wrap(tiny.build_model("qwen2"), tiny_tokenizer, name="teacher")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[RARE] = float("nan")
    return lm


def _texts(tokenizer, num):
    """Sound rows whose words are all given."""
    rows = rows_of(tokenizer, num)
    for row in rows:
        row.ids[row.ids == RARE] = 50
    return [replace(row, spans=((1, len(row.ids)),)) for row in rows]


def _recipe(*overrides):
    return tiny_recipe("teacher.path=it", "trace.batch_tokens=120", "trace.shard_tokens=200", *overrides)


@pytest.mark.parametrize("kind", ["sampled", "top_k", "hybrid"])
def test_the_row_and_the_place_are_named_and_nothing_of_the_shard_is_stored(kind, teacher, tiny_tokenizer, tmp_path):
    recipe = _recipe(f"trace.target.kind={kind}")
    rows = _texts(tiny_tokenizer, 16)
    bad = rows[5]
    bad.ids[3] = RARE
    quiet = lambda *_: None  # noqa: E731
    token = tiny_tokenizer.convert_ids_to_tokens(RARE)
    match = rf"not finite numbers from token 4 \('{re.escape(token)}'\) on of the row .*name bird 5.*float32"
    with pytest.raises(TeacherError, match=match):
        run_label(recipe, tmp_path / "store", teacher, rows, Callbacks(quiet, quiet, lambda: False))
    kept = TraceStore.open(tmp_path / "store").traces("train")
    assert bad.id not in {trace.row_id for trace in kept}


def test_sound_rows_are_scored_as_before(teacher, tiny_tokenizer):
    recipe, rows = _recipe("trace.target.kind=top_k"), _texts(tiny_tokenizer, 4)
    spec = support_spec(recipe.trace.target)
    (one, *_) = score(teacher, rows, spec, 1.0, torch.Generator().manual_seed(0))
    assert bool(one.head_p_nH.isfinite().all())
    traces, _ = label_rows(recipe, store_header(recipe, teacher), teacher, rows, 0)
    assert len(traces) == len(rows)


def test_replies_are_not_drawn_from_them(teacher, tiny_tokenizer):
    recipe = _recipe("trace.mode={kind: generate, max_tokens: 4}", "trace.target={kind: text}")
    (row,) = rows_of(tiny_tokenizer, 1)
    row.ids[2] = RARE
    with pytest.raises(TeacherError, match="not finite numbers"):
        label_rows(recipe, store_header(recipe, teacher), teacher, [row], 0)
