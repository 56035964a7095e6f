"""What labelling will do: header and shards of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.losses.support import SupportSpec
from limbeck.recipe import GenerateMode, Hybrid, Recipe, Sampled, TopK, Votes
from limbeck.store import VERSION, Codec, StoreHeader
from limbeck.text.packing import plan_batches
from limbeck.text.tokenizer import template_hash, tokenizer_hash
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import TargetSettings, TraceSection


def support_spec(target: TargetSettings) -> SupportSpec:
    """What is kept of a position; nothing where the teacher's full distribution is computed beside the student, where
    only text is kept, and of votes."""
    if isinstance(target, TopK):
        return SupportSpec(head=target.k, draws=0)
    if isinstance(target, Sampled):
        return SupportSpec(head=0, draws=target.draws, drawn_p=target.value == "probability")
    if isinstance(target, Hybrid):
        return SupportSpec(head=target.head, draws=target.draws, min_prob=target.min_prob)
    return SupportSpec(head=0, draws=0)


def codec_of(trace: TraceSection, vocab: int) -> Codec:
    """How what is kept of a position is laid out."""
    target, mode, spec = trace.target, trace.mode, support_spec(trace.target)
    if isinstance(target, Votes):
        return Codec(vocab, 0, mode.n if isinstance(mode, GenerateMode) else 1, "votes")
    if spec.drawn_p:  # the drawn tokens are a head of their own
        return Codec(vocab, min(spec.draws, vocab), 0, "renormalise")
    rest = target.tail if isinstance(target, TopK) and target.tail != "cell" else "tail"
    return Codec(vocab, min(spec.head, vocab), spec.draws, rest)


def store_header(recipe: Recipe, teacher: HfLM) -> StoreHeader:
    """The identity of the store that this recipe and teacher make."""
    dtype = str(teacher.dtype).removeprefix("torch.")
    return header_of(recipe, teacher.tokenizer, teacher.vocab, lm=(teacher.fingerprint, teacher.name), dtype=dtype)


def header_of(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, vocab: int, *, lm: tuple[str, str], dtype: str
) -> StoreHeader:
    """The identity of the store of a recipe. `lm` is the fingerprint and the name of who speaks, `tokenizer` what makes
    its words tokens, `vocab` how many of them there are."""
    target = recipe.trace.target
    codec = codec_of(recipe.trace, vocab)
    return StoreHeader(
        version=VERSION,
        kind=target.kind,
        head=codec.head,
        draws=codec.draws,
        min_prob=support_spec(target).min_prob,
        rest=codec.rest,
        vocab=vocab,
        temperature=recipe.objective.stored_temperature,
        dtype=dtype,
        lm=lm[0],
        lm_name=lm[1],
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
        mode=recipe.trace.mode.identity,
        seed=recipe.seed,
    )


def plan_shards(recipe: Recipe, rows: Sequence[Row]) -> list[list[str]]:
    """Rows grouped into shards. Prompts of one length go together when replies are generated (less padding)."""
    mode = recipe.trace.mode
    lengths = [len(row.ids) for row in rows]
    order = list(range(len(rows)))
    if isinstance(mode, GenerateMode):
        order.sort(key=lambda index: lengths[index])
        lengths = [(length + mode.max_tokens) * mode.n for length in lengths]
    return [[rows[i].id for i in shard] for shard in plan_batches(lengths, recipe.trace.shard_tokens, order=order)]
