"""What a recipe can minimise: divergences, temperatures, schedules, and how much each position counts.

The arithmetic of every divergence is in `losses.divergences`; a test holds the two together: names, parameters with
their defaults and ranges, what each needs of a target. `docs/concepts/objectives.md` says which is for what.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from limbeck.config.schema import Fraction, Positive, Section

Needs = Literal["sample", "cells", "full"]
Above = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]

# ---- divergences: `p` is the teacher, `q` the student ----------------------------------------------------------------


class _Kind(Section):
    """`needs` of a target: "sample" is content with unbiased draws, "cells" with a support and the mass of its tail,
    "full" wants every token. `tempered`: whether the temperature has an effect. `inert`: parameters at which the loss
    is always 0."""

    needs: ClassVar[Needs] = "cells"
    tempered: ClassVar[bool] = True
    inert: ClassVar[dict[str, float]] = {}


class ForwardKL(_Kind):
    """KL(p || q): the student covers all that the teacher may say (arXiv 1503.02531)."""

    kind: Literal["forward_kl"] = "forward_kl"
    needs: ClassVar[Needs] = "sample"


class ReverseKL(_Kind):
    """KL(q || p): the student keeps to what the teacher surely says (MiniLLM, arXiv 2306.08543)."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(_Kind):
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, eq. 1): `beta` weighs the teacher."""

    kind: Literal["jsd"] = "jsd"
    beta: Fraction = Field(default=0.5, description="0 is forward KL, 1 is reverse KL (GKD's limits)")


class SkewForward(_Kind):
    """KL(p || alpha p + (1 - alpha) q): forward KL with bounded gradients (DistiLLM, arXiv 2402.03898)."""

    kind: Literal["skew_forward"] = "skew_forward"
    alpha: Fraction = Field(default=0.1, description="share of the teacher in the mixture; 0 is forward KL")
    inert: ClassVar[dict[str, float]] = {"alpha": 1.0}


class SkewReverse(_Kind):
    """KL(q || (1 - alpha) p + alpha q): reverse KL with bounded gradients (DistiLLM, arXiv 2402.03898)."""

    kind: Literal["skew_reverse"] = "skew_reverse"
    alpha: Fraction = Field(default=0.1, description="share of the student in the mixture; 0 is reverse KL")
    inert: ClassVar[dict[str, float]] = {"alpha": 1.0}


class AdaptiveKL(_Kind):
    """Forward and reverse KL mixed by where teacher and student differ: head or tail (AKL, arXiv 2404.02657)."""

    kind: Literal["adaptive"] = "adaptive"
    mu: Fraction = Field(default=0.5, description="the head is the fewest tokens that hold this mass of the teacher")


class AlphaBeta(_Kind):
    """The alpha-beta divergence (ABKD, arXiv 2505.04560): (1, 0) is forward KL, (0, 1) reverse KL."""

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: Annotated[float, Field(ge=0.0, le=4.0)] = Field(default=0.2, description="larger: attends to large gaps")
    beta: Annotated[float, Field(ge=0.0, le=4.0)] = Field(
        default=0.7, description="larger: attends to what the student is sure of"
    )


class TotalVariation(_Kind):
    """Half the sum of |p - q|: bounded, robust, with small gradients (f-DISTILL, arXiv 2307.15190)."""

    kind: Literal["tvd"] = "tvd"


class Hellinger(_Kind):
    """The squared Hellinger distance, half the sum of (sqrt p - sqrt q)^2: bounded, symmetric."""

    kind: Literal["hellinger"] = "hellinger"


class LogitMSE(_Kind):
    """Half the mean squared difference of centred logits (arXiv 1312.6184): unlikely tokens count like likely ones."""

    kind: Literal["mse"] = "mse"
    needs: ClassVar[Needs] = "full"
    tempered: ClassVar[bool] = False


class LogitCosine(_Kind):
    """1 - cosine of the angle between centred logits: indifferent to their scale (DIST, arXiv 2205.10536)."""

    kind: Literal["cosine"] = "cosine"
    needs: ClassVar[Needs] = "full"
    tempered: ClassVar[bool] = False


class Decoupled(_Kind):
    """alpha KL(gold or not) + beta KL(among the other tokens) (DKD, arXiv 2203.08679, eq. 7)."""

    kind: Literal["decoupled"] = "decoupled"
    alpha: Annotated[float, Field(ge=0.0, le=100.0)] = Field(default=1.0, description="weight of gold against the rest")
    beta: Annotated[float, Field(ge=0.0, le=100.0)] = Field(default=2.0, description="weight among the other tokens")
    needs: ClassVar[Needs] = "full"


class Ranking(_Kind):
    """The teacher's order of its most probable tokens, by a hinge on every pair (Herbrich et al. 2000)."""

    kind: Literal["ranking"] = "ranking"
    k: Annotated[int, Field(ge=2, le=64)] = Field(default=8, description="tokens that are ranked")
    margin: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        default=0.0, description="by how much a better token's logit (over T) shall lead"
    )


# fmt: off
DivergenceSettings = (
    ForwardKL | ReverseKL | JSD | SkewForward | SkewReverse | AdaptiveKL | AlphaBeta | TotalVariation | Hellinger
    | LogitMSE | LogitCosine | Decoupled | Ranking
)
# fmt: on


def needs_of(divergence: DivergenceSettings) -> Needs:
    """What it needs of a target; a JSD with beta 0 is forward KL."""
    return "sample" if isinstance(divergence, JSD) and divergence.beta == 0 else divergence.needs


# ---- numbers that change ---------------------------------------------------------------------------------------------


Start = Annotated[float, Field(ge=0.0, description="value at the first step")]
End = Annotated[float, Field(ge=0.0, description="value at the end")]
Over = Annotated[
    float, Field(gt=0.0, le=1.0, description="share of the budget that it takes; `end` stands for the rest")
]
By = Annotated[Literal["entropy", "confidence"], Field(description="entropy in nats, or 1 - the largest probability")]
UnsureFrom = Annotated[
    float,
    Field(
        gt=0.0,
        serialization_alias="full",
        description="entropy, or 1 - the largest probability, from which it is unsure",
    ),
]


class Linear(Section):
    """A number that moves from `start` to `end` in a straight line over the budget."""

    kind: Literal["linear"] = "linear"
    start: Start
    end: End
    over: Over = 1.0


class HalfCosine(Section):
    """A number that moves from `start` to `end` along half a cosine: slow, fast, slow."""

    kind: Literal["cosine"] = "cosine"
    start: Start
    end: End
    over: Over = 1.0


class ByTeacher(Section):
    """A number for each position by how unsure the teacher is there, straight between the two ends."""

    kind: Literal["adaptive"] = "adaptive"
    by: By = "entropy"
    certain: NotNegative = Field(description="value where the teacher is certain")
    unsure: NotNegative = Field(description="value where it is unsure: at `unsure_from` and beyond")
    unsure_from: UnsureFrom = 1.0


def _kind_or_number(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind")
    return value.kind if isinstance(value, Section) else "number"  # type: ignore[attr-defined]


KindOrNumber = Discriminator(_kind_or_number)
Schedule = Linear | HalfCosine
Temperature = (
    Annotated[float, Field(gt=0.0), Tag("number")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[HalfCosine, Tag("cosine")]
    | Annotated[ByTeacher, Tag("adaptive")]
)
Share = (
    Annotated[float, Field(ge=0.0, le=1.0), Tag("number")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[HalfCosine, Tag("cosine")]
)


def ends_of(by: Temperature) -> tuple[float, float]:
    """Between which values a number moves: twice itself where it does not."""
    if isinstance(by, ByTeacher):
        return by.certain, by.unsure
    return (by.start, by.end) if isinstance(by, Schedule) else (by, by)


# ---- how much each position counts -----------------------------------------------------------------------------------


class TeacherWeights(Section):
    """By how unsure the teacher is: straight between the two ends."""

    by: By = "entropy"
    certain: NotNegative = Field(description="weight where the teacher is certain")
    unsure: NotNegative = Field(description="weight where it is unsure: at `unsure_from` and beyond")
    unsure_from: UnsureFrom = 1.0


class TokenWeights(Section):
    """By the class of the token that really follows, read from its bytes (spaces around it do not count)."""

    digits: NotNegative = Field(default=1.0, description="digits only")
    punctuation: NotNegative = Field(default=1.0, description="neither letter nor digit: punctuation and symbols")
    whitespace: NotNegative = Field(default=1.0, description="nothing but spaces and line ends")
    end: NotNegative = Field(default=1.0, description="the tokenizer's end token: where to stop")
    special: NotNegative = Field(default=1.0, description="other special tokens, such as those of a chat template")
    words: NotNegative = Field(default=1.0, description="everything else")


class FirstTokens(Section):
    """The first tokens of each document or reply have a weight of their own."""

    kind: Literal["first"] = "first"
    tokens: Positive = Field(description="how many")
    weight: NotNegative = Field(description="their weight; it is 1 after them")


class PlaceRamp(Section):
    """From the first token of each document or reply on, straight from `start` to `end`."""

    kind: Literal["ramp"] = "ramp"
    tokens: Positive = Field(description="length of the ramp; `end` stands after it")
    start: NotNegative = Field(description="weight of the first token")
    end: NotNegative = Field(description="weight at its end")


class PositionWeights(Section):
    """How much each position counts; several are multiplied. A weight multiplies the position's whole loss, and the sum
    is divided by the number of positions, not of weights: 2 doubles the gradients of those positions and leaves the
    others alone."""

    teacher: TeacherWeights | None = Field(default=None, description="by the teacher's doubt")
    tokens: TokenWeights | None = Field(default=None, description="by the class of the token; the twin has them too")
    place: FirstTokens | PlaceRamp | None = Field(
        default=None, discriminator="kind", description="by the place in the document; the twin has them too"
    )


class ExtraTerm(Section):
    """One more divergence in the same pass: `weight * T^2 * divergence` is added to the first."""

    divergence: DivergenceSettings = Field(discriminator="kind")
    weight: Above = Field(default=1.0, description="its weight; the first divergence has 1")
    temperature: Above | None = Field(default=None, description="its own T; null is objective.temperature")


class Objective(Section):
    """loss = (1 - ce_weight) * (T^2 * divergence(teacher, student at temperature T) + extra_terms) + ce_weight * CE."""

    divergence: DivergenceSettings = Field(default_factory=ForwardKL, discriminator="kind")
    temperature: Temperature = Field(
        default=1.0,
        discriminator=KindOrNumber,
        description="T, on both sides; the student is used at 1. A kind makes it change (live teachers only)",
    )
    extra_terms: tuple[ExtraTerm, ...] = Field(
        default=(),
        serialization_alias="also",
        description="further divergences that share the pass over the head",
    )
    ce_weight: Share = Field(
        default=0.0,
        discriminator=KindOrNumber,
        description="share of cross-entropy on ground truth; 1 is plain training",
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="share of the ground truth that is spread over all tokens, in the student and its twin"
    )
    position_weights: PositionWeights = Field(default_factory=PositionWeights)

    @property
    def stored_temperature(self) -> float:
        """The T of distributions that are stored. One that changes is for live teachers, with which none are: 1."""
        return self.temperature if isinstance(self.temperature, (int, float)) else 1.0

    @property
    def max_temperature(self) -> float:
        """The largest T that any term ever has."""
        return max(*ends_of(self.temperature), *(term.temperature or 0.0 for term in self.extra_terms), 0.0)

    @property
    def max_ce_weight(self) -> float:
        """The largest share that cross-entropy ever has."""
        return max(ends_of(self.ce_weight))

    @property
    def only_ce(self) -> bool:
        """Plain training: no divergence at any step."""
        return min(ends_of(self.ce_weight)) == 1
