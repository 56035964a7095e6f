"""What a model folder says of generation: its sampling never overrules a recipe, its ends are all known."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck.errors import TeacherError
from limbeck.models.artifact import save_artifact
from limbeck.models.generation import SHAPING, joined_ids, shaping_defaults, tokenizer_ends
from limbeck.models.hf import HfLM
from limbeck.models.open import open_lm
from limbeck.models.sampling import write_one
from limbeck.text.chat_template import ChatTemplate
from limbeck.types import Sampling
from tests import tiny

PROMPT = np.array([50, 60, 70], np.int32)

DEFAULTS = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "min_p": 0.3,
    "top_h": 0.3,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.05,
    "eta_cutoff": 0.05,
    "suppress_tokens": list(range(100, 384)),
    "begin_suppress_tokens": list(range(100, 384)),
    "bad_words_ids": [[token] for token in range(100, 384)],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 9,
    "sequence_bias": [[[9], 50.0]],
    "exponential_decay_length_penalty": [1, 9.0],
    "num_beams": 3,
    "min_length": 20,
    "min_new_tokens": 20,
    "stop_strings": ["e"],
    "top_k": 2,
    "top_p": 0.1,
    "temperature": 0.1,
}


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("name", DEFAULTS)
def test_no_default_of_the_model_shapes_a_reply(name, greedy, tiny_model, tiny_tokenizer):
    sampling = Sampling(0.0 if greedy else 1.0, 1.0, 1 if greedy else 2, 8, (), 3)
    replies = []
    for values in ({}, {name: DEFAULTS[name]}):
        model = tiny_model("qwen2")
        for key, value in values.items():
            setattr(model.generation_config, key, value)
        lm = HfLM.wrap(model, tiny_tokenizer, name="it")
        replies.append([reply.ids.tolist() for reply in lm.generate([PROMPT], sampling)[0]])
        assert model.generation_config.to_dict().get(name) == values.get(name)  # the model keeps what it had
    assert replies[0] == replies[1]


def test_defaults_that_are_set_aside_are_told(tiny_model, tiny_tokenizer):
    model = tiny_model("qwen2")
    assert HfLM.wrap(model, tiny_tokenizer, name="it").notes == ()
    model.generation_config.update(repetition_penalty=1.05, typical_p=1.0, no_repeat_ngram_size=0, bad_words_ids=[[5]])
    assert shaping_defaults(model.generation_config) == {"repetition_penalty": 1.05, "bad_words_ids": [[5]]}
    (note,) = HfLM.wrap(model, tiny_tokenizer, name="it").notes
    assert "repetition_penalty=1.05" in note and "drawn as the recipe says" in note
    assert set(DEFAULTS) - {"top_k", "top_p", "temperature"} <= set(SHAPING)


def test_nothing_is_drawn_from_logits_that_are_no_numbers(tiny_model, tiny_tokenizer):
    model = tiny_model("qwen2")
    lm = HfLM.wrap(model, tiny_tokenizer, name="it")
    with torch.no_grad():
        model.model.embed_tokens.weight[70] = float("inf")
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature, max_tokens=4)
        with pytest.raises(TeacherError, match="not finite numbers"):
            lm.generate([PROMPT], sampling)
        with pytest.raises(TeacherError, match="not finite numbers"):
            list(write_one(lm, PROMPT, sampling))


def test_the_end_of_a_turn_ends_a_reply(tiny_tokenizer):
    """A base model's end is that of a document; its chat template ends turns with another token."""
    assert ChatTemplate(tiny_tokenizer).end_id == 2 and tokenizer_ends(tiny_tokenizer) == [2]
    base = tiny.build_tokenizer()
    base.eos_token = tiny.PAD
    assert tokenizer_ends(base) == [0, 2]
    assert tokenizer_ends(tiny.build_tokenizer(chat_template=None)) == [2]
    base.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert ChatTemplate(base).end_id is None
    base.chat_template = "{{ raise_exception('never') }}"
    assert ChatTemplate(base).end_id is None
    assert joined_ids([3, 1], None, 3, [2]) == [3, 1, 2]


def test_an_artifact_names_every_end_that_its_rows_teach(tmp_path, tiny_model, card):
    model, tokenizer = tiny_model("llama"), tiny.build_tokenizer()
    tokenizer.eos_token = tiny.PAD
    model.generation_config.eos_token_id = 0
    save_artifact(tmp_path / "it", model, tokenizer, card)
    assert json.loads((tmp_path / "it" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert model.generation_config.eos_token_id == 0
    assert open_lm(tmp_path / "it").end_ids == [0, 2]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "it")
    assert plain.generation_config.eos_token_id == [0, 2]
