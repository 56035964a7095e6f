"""What a curation rule may use: the recipe, verdicts, and a judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.curate.verdicts import Verdict
    from limbeck.recipe import Verifier

    Verify = Callable[[Verifier, list[tuple[str, str]]], list[Verdict]]


@dataclass(frozen=True)
class Candidate:
    """One reply as curation and verification see it. `id` is its trace's, `prompt` the last user turn or the plain
    prompt, `reference` what a right answer is compared with ("" where there is none); `meta` is the trace's."""

    id: str
    row_id: str
    split: str
    topic: str
    prompt: str
    reply: str
    reference: str = ""
    finish_reason: str = "stop"
    num_tokens: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What rules know besides the replies they are given: `verify` (cached, and stoppable), the replies that are held
    out, the seed, the ids of all replies. And what they find: the share of right replies by row, the verdict on each
    reply, those that a human wants to keep whatever later rules say, and sentences that a reader should know."""

    verify: Verify
    held_out: Sequence[Candidate] = ()
    seed: int = 0
    ids: frozenset[str] = frozenset()
    pass_rate: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
