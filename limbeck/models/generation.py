"""What a model folder says of generation: the tokens that end a reply, and sampling that must not overrule a recipe."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, LogitsProcessor

from limbeck.errors import TeacherError
from limbeck.models.finite import advice
from limbeck.text.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHAPING = (
    "repetition_penalty", "no_repeat_ngram_size", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "forced_bos_token_id",
    "forced_eos_token_id", "sequence_bias", "exponential_decay_length_penalty", "guidance_scale",
    "watermarking_config", "num_beams", "penalty_alpha", "min_length", "min_new_tokens", "stop_strings",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "diversity_penalty", "length_penalty",
)  # fmt: skip
"""Settings of a generation config that make other text of the same distributions, and that no recipe has."""


def shaping_defaults(config: GenerationConfig | None) -> dict[str, Any]:
    """Those that a model's own generation config sets: transformers takes them wherever nothing else is said."""
    values = {} if config is None else config.to_dict()
    return {name: value for name in SHAPING if (value := values.get(name)) not in (None, 0, 1, False, [], {}, "")}


@contextlib.contextmanager
def without_defaults(model: PreTrainedModel, end_ids: list[int]) -> Iterator[None]:
    """Inside, the model has no generation config of its own but the tokens that end a reply."""
    own = model.generation_config
    roles = {name: getattr(own, name, None) for name in ("bos_token_id", "pad_token_id", "decoder_start_token_id")}
    model.generation_config = GenerationConfig(eos_token_id=end_ids or None, **roles)
    try:
        yield
    finally:
        model.generation_config = own


def tokenizer_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a reply, whatever the model's generation config names: the tokenizer's own end, and the token by
    which its chat template ends a turn. (A base model's config names the end of a document alone, and rows that were
    rendered by the template teach another.)"""
    return joined_ids(tokenizer.eos_token_id, ChatTemplate(tokenizer).end_id)


def joined_ids(*found: Any) -> list[int]:
    """One list of ids, numbers, and nothings, each id once."""
    lists: Iterable[Any] = (one if isinstance(one, list | tuple) else [one] for one in found)
    return list(dict.fromkeys(id for one in lists for id in one if isinstance(id, int)))


class FiniteLogits(LogitsProcessor):
    """Raises TeacherError instead of drawing from logits that are not numbers. Changes nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.dtype = model.dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad_B = ~scores.amax(-1).isfinite()
        if bool(bad_B.any()):
            row = int(bad_B.nonzero()[0])
            raise TeacherError(
                f"the model's logits are not finite numbers after {input_ids.shape[1]} tokens of row {row} of a batch, "
                f"so no reply can be drawn. {advice(self.dtype)}"
            )
        return scores
