"""Tokens of a tokenizer, ids that they go up to, rows of embedding and head: four numbers, one owner."""

from limbeck.models.hf import HfLM
from limbeck.models.vocabulary import VocabSizes, num_ids, vocab_sizes, vocab_sizes_told
from tests import tiny


def test_the_four_numbers(tiny_model, tiny_tokenizer):
    padded = tiny_model("llama", vocab_size=448)
    assert vocab_sizes(tiny_tokenizer, padded) == VocabSizes(384, 384, 448, 448)
    assert vocab_sizes_told(tiny_tokenizer, padded.config) == vocab_sizes(tiny_tokenizer, padded)
    assert vocab_sizes(tiny_tokenizer, padded).real == 384 and not vocab_sizes(tiny_tokenizer, padded).without_row


def test_a_token_that_was_added_has_no_row(tiny_model):
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.START, "<extra>"]})
    sizes = vocab_sizes(tokenizer, tiny_model("llama"))
    assert sizes == VocabSizes(385, 385, 384, 384) and list(sizes.without_row) == [384] and sizes.real == 384


def test_ids_with_holes_reach_further_than_there_are_tokens(tiny_model, tiny_tokenizer, monkeypatch):
    """Real tokens beyond a hole are columns like all others."""
    ids = {token: id + 10 * (id > 300) for token, id in tiny_tokenizer.get_vocab().items()}
    monkeypatch.setattr(type(tiny_tokenizer), "get_vocab", lambda _: ids)
    assert num_ids(tiny_tokenizer) == 394 > len(tiny_tokenizer)
    assert HfLM.wrap(tiny_model("llama", vocab_size=448), tiny_tokenizer, name="holes").vocab == 394
