"""The recipe's sections on curation: which of the teacher's replies the student learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limbeck.shape import Fraction, Positive, Section
from limbeck.verifiers import Verifier

Above0 = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[int, Field(ge=0)]


class _Rule(Section):
    topics: tuple[str, ...] = Field(default=(), description="only rows of these topics are looked at; empty: all")


class VerifyRule(_Rule):
    """Replies are verified against the row's reference, and wrong ones left out. The share of right ones is kept as
    `pass_rate`: how hard the prompt is."""

    kind: Literal["verify"] = "verify"
    verifier: Verifier = Field(discriminator="kind", description="what makes a reply right")
    pick: Literal["all", "shortest", "random"] = Field(
        default="all", description="which right replies of a prompt are kept, where there are more than `per_prompt`"
    )
    per_prompt: Positive | None = Field(default=None, description="most right replies kept of one prompt")
    keep_wrong: bool = Field(default=False, description="leave nothing out, only measure")
    keep_unknown: bool = Field(default=False, description="keep replies of which nothing could be said")


class PassRateRule(_Rule):
    """Prompts that the teacher gets right neither always nor never (after `verify`)."""

    kind: Literal["pass_rate"] = "pass_rate"
    min: Fraction = Field(default=0.0, description="least share of right replies")
    max: Fraction = Field(default=1.0, description="largest share of right replies")


class FinishRule(_Rule):
    """Replies that ended by themselves: neither cut off nor filtered."""

    kind: Literal["finish"] = "finish"
    allowed: tuple[str, ...] = Field(default=("stop",), description="finish reasons that are kept")


class LengthRule(_Rule):
    """Neither too short nor too long."""

    kind: Literal["length"] = "length"
    of: Literal["reply", "thinking", "answer"] = Field(
        default="reply", description="what is measured: `thinking` stands in <think> tags, `answer` behind them"
    )
    unit: Literal["characters", "tokens"] = Field(default="characters", description="tokens only `of` the reply")
    min: NotNegative = Field(default=0, description="least length")
    max: Positive | None = Field(default=None, description="largest length")


class ThinkRule(_Rule):
    """Reasoning stands once, whole, in <think> tags, and an answer follows it."""

    kind: Literal["think"] = "think"


class CodeRule(_Rule):
    """No code blocks in the reasoning (as DeepSeek-R1 was filtered, arXiv 2501.12948)."""

    kind: Literal["code_in_thinking"] = "code_in_thinking"


class ParagraphRule(_Rule):
    """No paragraph longer than so (as DeepSeek-R1 was filtered, arXiv 2501.12948)."""

    kind: Literal["paragraphs"] = "paragraphs"
    max: Positive = Field(default=2000, description="most characters of a paragraph")


class LanguageRule(_Rule):
    """Replies in the languages named, paragraph by paragraph (`py3langid`, extra `curate`)."""

    kind: Literal["language"] = "language"
    allowed: tuple[str, ...] = Field(min_length=1, description="two-letter codes, such as en")
    min_characters: Positive = Field(default=40, description="shorter paragraphs are not looked at")
    mixed: bool = Field(default=False, description="allow several of them in one reply")


class RepetitionRule(_Rule):
    """No loops: neither a text of repeated n-grams, nor an end that repeats itself."""

    kind: Literal["repetition"] = "repetition"
    n: Annotated[int, Field(ge=2)] = Field(default=8, description="words of an n-gram")
    max_share: Fraction = Field(default=0.3, description="largest share of n-grams that stood before")
    max_loops: Annotated[int, Field(ge=2)] = Field(default=4, description="most times that the end repeats itself")


class DuplicateRule(_Rule):
    """The first of several that are the same, white space and case aside."""

    kind: Literal["exact_duplicates"] = "exact_duplicates"
    by: Literal["prompt", "reply", "both"] = Field(
        default="both", description="what is compared; `prompt` keeps all replies to the first of equal prompts"
    )


class NearDuplicateRule(_Rule):
    """The first of several that share most of their words' shingles (MinHash; `datasketch`, extra `curate`)."""

    kind: Literal["near_duplicates"] = "near_duplicates"
    by: Literal["prompt", "reply"] = Field(default="reply", description="what is compared")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(default=0.8, description="Jaccard similarity")
    shingle: Positive = Field(default=3, description="words of a shingle")
    permutations: Annotated[int, Field(ge=16)] = Field(default=128, description="more are more exact, and slower")


class DecontaminateRule(_Rule):
    """Nothing that shares an n-gram with the run's held-out rows or with evaluation sets of yours."""

    kind: Literal["decontaminate"] = "decontaminate"
    n: Positive = Field(default=13, description="words of an n-gram")
    paths: tuple[str, ...] = Field(default=(), description="files, one text a line (JSONL: all strings of a line)")
    held_out: bool = Field(default=True, description="compare with this run's held-out rows")


class QuotaRule(_Rule):
    """Most replies in total and of each topic; whole prompts are drawn, the same with every run of one seed."""

    kind: Literal["quota"] = "quota"
    total: Positive | None = Field(default=None, description="most replies in all, shared among topics by `weights`")
    per_topic: Positive | None = Field(default=None, description="most replies of any one topic")
    weights: dict[str, Above0] = Field(default={}, description="share of topics in `total`; 1 where none is given")


class VerdictRule(_Rule):
    """What a human said (`limbeck review` exports the table): CSV with the columns id, verdict (keep or reject)."""

    kind: Literal["verdicts"] = "verdicts"
    path: str = Field(description="the CSV file")


CurateRule = (
    VerifyRule
    | PassRateRule
    | FinishRule
    | LengthRule
    | ThinkRule
    | CodeRule
    | ParagraphRule
    | LanguageRule
    | RepetitionRule
    | DuplicateRule
    | NearDuplicateRule
    | DecontaminateRule
    | QuotaRule
    | VerdictRule
)
