"""How many tokens there are: the four numbers that are equal in most models, and the mistakes where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class VocabSizes(NamedTuple):
    """`tokens` of the tokenizer, `ids` that they go up to (its largest id and one: ids may have holes), and rows of the
    model's `embedding` and `head` (often padded to a round number)."""

    tokens: int
    ids: int
    embedding: int
    head: int

    @property
    def real(self) -> int:
        """Columns of the head that a token has: all others are padding."""
        return min(self.ids, self.head)

    @property
    def without_row(self) -> range:
        """Ids that the tokenizer knows, and for which the model has no row."""
        return range(min(self.embedding, self.head), self.ids)


def vocab_sizes(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> VocabSizes:
    """Of a model that is open."""
    layers: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    return VocabSizes(len(tokenizer), num_ids(tokenizer), *(len(layer.weight) for layer in layers))


def vocab_sizes_told(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> VocabSizes:
    """As a model's config tells them."""
    text: Any = config.get_text_config()
    rows = getattr(text, "vocab_size", None) or num_ids(tokenizer)
    return VocabSizes(len(tokenizer), num_ids(tokenizer), rows, rows)


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the tokenizer's largest id."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1
