"""`trace`: what the teacher does with a row, and what is kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from limbeck.config.problems import Problem, problem
from limbeck.config.renamed import Was
from limbeck.config.schema import Positive, Section
from limbeck.recipe.objective import Needs
from limbeck.recipe.teacher import OpenAITeacher
from limbeck.recipe.verifier import Judge, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe


class ScoreMode(Section):
    """The teacher reads the given text (teacher forcing)."""

    kind: Literal["score"] = "score"
    generates: ClassVar[bool] = False
    num_replies: ClassVar[int] = 1
    max_reply: ClassVar[int] = 0

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the teacher says."""
        return self.stored_form()


class Rejection(Section):
    """Rejection sampling (DeepSeek-R1, arXiv 2501.12948): a prompt gets replies until enough are correct."""

    verifier: Annotated[Verifier, Field(discriminator="kind")] = Field(description="verifier that judges a reply")
    num_correct: Positive = Field(
        default=1,
        serialization_alias="right",
        description="correct replies after which a prompt gets no further ones",
    )


class GenerateMode(Section):
    """The teacher writes replies to the prompts, and its distributions on them are kept."""

    kind: Literal["generate"] = "generate"
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=1.0, description="sampling temperature; 0 is greedy")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=1.0, description="nucleus sampling; 1 is off")
    n: Positive = Field(default=1, description="replies per prompt; with `rejection` the maximum")
    rejection: Rejection | None = Field(
        default=None,
        serialization_alias="enough",
        description="rejection sampling: one reply after the other until enough are correct; null samples all `n`",
    )
    max_tokens: Positive = Field(default=128, description="maximum length of a reply in tokens")
    stop: tuple[str, ...] = Field(default=(), description="strings that end a reply")
    think: Literal["keep", "strip"] = Field(
        default="keep",
        description="reasoning in <think> tags: `strip` trains only on what follows it (text targets), while the store "
        "keeps all. The rule `think` of `curate` requires reasoning",
    )
    generates: ClassVar[bool] = True

    @property
    def num_replies(self) -> int:
        """Replies per prompt: one where the text is given."""
        return self.n

    @property
    def max_reply(self) -> int:
        """The longest reply in tokens: 0 where the text is given."""
        return self.max_tokens

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the teacher says; what is learnt of it does not."""
        return self.stored_form({"think", *(() if self.rejection else ("rejection",))})


class _Target(Section):
    """`is_stored`: labelling writes distributions into a store. `is_live`: the teacher runs beside the student. Each
    kind also `offers` something to a divergence: every token, a support with the mass of its tail, or a sample."""

    is_stored: ClassVar[bool] = True
    is_live: ClassVar[bool] = False


class TopK(_Target):
    """The k most probable tokens. Biased; least with the tail as one more cell (the default)."""

    kind: Literal["top_k"] = "top_k"
    k: Annotated[int, Field(ge=1, le=1024)] = Field(default=32, description="tokens kept per position")
    tail: Annotated[Literal["cell", "gold", "spread", "renormalise"], Was((("tail", "cell"),))] = Field(
        default="cell",
        serialization_alias="rest",
        description="the mass of all other tokens: `cell` keeps it as one more cell; `gold` gives it to the token that "
        "really follows, `spread` to all others evenly, `renormalise` to the k (all three biased more)",
    )

    @property
    def offers(self) -> Needs:
        return "cells" if self.tail == "cell" else "sample"


class Sampled(_Target):
    """Draws from the teacher, evenly spaced over its cumulative distribution: unbiased, and the smallest. `value` has
    both readings of Gemma 3's 256 draws (arXiv 2503.19786)."""

    kind: Literal["sampled"] = "sampled"
    offers: ClassVar[Needs] = "sample"
    draws: Annotated[int, Field(ge=1, le=4096)] = Field(default=36, description="draws per position")
    value: Literal["counts", "probability"] = Field(
        default="counts",
        description="weight of a drawn token: its count (unbiased), or the teacher's, renormalised (biased)",
    )


class Hybrid(_Target):
    """Exact head and sampled tail with importance weights: unbiased, the head without any noise."""

    kind: Literal["hybrid"] = "hybrid"
    offers: ClassVar[Needs] = "sample"
    head: Annotated[int, Field(ge=1, le=128)] = Field(default=8, description="most tokens kept exactly")
    min_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.02, description="tokens below this are left to the tail: certain positions store few tokens"
    )
    draws: Annotated[int, Field(ge=1, le=127)] = Field(
        default=32,
        description="draws for a tail of mass 1; a position's tail gets draws in proportion to its mass, at least 1",
    )


class Live(_Target):
    """The full distribution. Nothing is stored: the teacher runs beside the student."""

    kind: Literal["full"] = "full"
    is_stored: ClassVar[bool] = False
    is_live: ClassVar[bool] = True
    offers: ClassVar[Needs] = "full"


class TextTarget(_Target):
    """Hard labels: the text alone is kept (sequence-level KD, arXiv 1606.07947). Needs objective.ce_weight 1."""

    kind: Literal["text"] = "text"
    offers: ClassVar[Needs] = "sample"
    is_stored: ClassVar[bool] = False


class Votes(_Target):
    """Soft labels without any log-prob: at each position, the share of a prompt's `trace.mode.n` replies that go on
    with each token. Equal replies are stored once, weighed by their share."""

    kind: Literal["votes"] = "votes"
    offers: ClassVar[Needs] = "sample"


TargetSettings = TopK | Sampled | Hybrid | Live | TextTarget | Votes


class TraceSection(Section):
    """What the teacher does with each row, and what is kept of it."""

    mode: ScoreMode | GenerateMode = Field(default_factory=ScoreMode, discriminator="kind")
    target: TargetSettings = Field(default_factory=Sampled, discriminator="kind")
    batch_tokens: Positive = Field(default=4096, description="tokens of one forward pass of the teacher")
    shard_tokens: Positive = Field(default=65536, description="tokens of one shard; a kill loses at most one")


# ---- what it may not say ---------------------------------------------------------------------------------------------


def vote_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction between a target of votes and the other sections; nothing for other targets."""
    mode, objective = recipe.trace.mode, recipe.objective
    if not isinstance(recipe.trace.target, Votes):
        return
    if not isinstance(mode, GenerateMode):
        message = f"is votes, which replies cast, but trace.mode.kind is {mode.kind}. Set it to generate."
        yield problem("trace.target.kind", message)
    elif mode.n < 2:
        message = f"is {mode.n}, but votes need replies to count: at least 2, better 5 to 10. Or set target.kind=text."
        yield problem("trace.mode.n", message)
    if not objective.only_ce and objective.temperature != 1:
        message = "changes distributions, and votes are counts of replies: set it to 1 (trace.mode.temperature is "
        yield problem("objective.temperature", message + "the one that replies are drawn at).")
    if objective.position_weights.teacher is not None:
        message = "weighs by how sure the teacher is, of which one or two replies at a position say nothing; remove it."
        yield problem("objective.position_weights.teacher", message)


def rejection_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction between `trace.mode.rejection` and the other sections; nothing without it."""
    mode, where = recipe.trace.mode, "trace.mode.rejection"
    if not isinstance(mode, GenerateMode) or mode.rejection is None:
        return
    wanted = mode.rejection.num_correct
    if wanted >= mode.n:
        message = f"is {wanted}, and a prompt gets at most trace.mode.n={mode.n} replies: nothing is ever spared. "
        yield problem(f"{where}.num_correct", message + "Raise trace.mode.n, or remove trace.mode.rejection.")
    if isinstance(recipe.trace.target, Votes):
        yield problem(where, "stops at right replies, and votes are shares of all; remove it, or set target.kind=text.")
    if isinstance(mode.rejection.verifier, Judge):
        message = "is judge, which is asked many replies at once, not one after the other. Take another verifier, or "
        yield problem(f"{where}.verifier.kind", message + "the rule `verify` of curate.")
    if isinstance(recipe.teacher, OpenAITeacher) and recipe.teacher.mode == "batch":
        message = "asks one reply after the other, and a batch takes a day. Set teacher.mode to live, or remove it."
        yield problem(where, message)
