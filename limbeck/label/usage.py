"""What an endpoint has come to so far: counts and costs from the reply log's entries, and when they end the job."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from limbeck.recipe import OpenAITeacher, Prices

FEW = 20
"""Replies before the share of failed ones is judged."""

MOST_REASONS = 20


@dataclass
class Tally:
    """What was asked, over all sittings: read from the journal, then counted on. Shown in RUN/traces/asked.json."""

    answered: int = 0  # replies
    failed_keys: dict[str, str] = field(default_factory=dict)  # with their kinds; answered later, they have not
    unusable: dict[str, str] = field(default_factory=dict)  # replies that no trace can be made of, with the reason
    probes: set[str] = field(default_factory=set)  # what the endpoint was seen to do, once charged
    finish_reasons: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, entry: dict[str, Any]) -> None:
        self.requests += bool(entry["keys"])
        self.attempts += entry.get("attempts", 0)
        self.cost += entry["cost"]
        self.probes |= {entry["probe"]} if "probe" in entry else set()
        for key in entry.get("usable", ()):
            self.unusable.pop(key, None)
        if "failed" in entry:
            self.failed_keys |= dict.fromkeys(entry["keys"], entry["failed"]["kind"])
        if "answer" in entry:
            answer = entry["answer"]
            self.answered += len(entry["keys"])
            for key in entry["keys"] if self.failed_keys or self.unusable else ():
                self.failed_keys.pop(key, None)
                self.answered -= self.unusable.pop(key, None) is not None  # it was asked for once more
            self.unusable |= {key: brief(reason) for key, reason in entry.get("unusable", {}).items()}
            self.finish_reasons.update(choice["finish_reason"] for choice in answer["choices"])
            self.answered_by[" ".join((answer["model"], answer["system_fingerprint"])).strip()] += len(entry["keys"])
            prompt, completion = answer["usage"]
            self.prompt_tokens += prompt or 0
            self.completion_tokens += completion or 0

    def forgive(self, keys: Iterable[str]) -> None:
        """Failed replies, and the unusable ones of `keys`, are asked for again."""
        self.failed_keys.clear()
        for key in keys:
            self.unusable.pop(key, None)
            self.answered -= 1

    @property
    def ended(self) -> int:
        """Replies that are there or finally failed."""
        return self.answered + len(self.failed_keys)

    def facts(self, prices: Prices | None) -> dict[str, Any]:
        """What is shown."""
        return {
            "answered": self.answered,
            "failed": dict(self.failed),
            "unusable": dict(Counter(self.unusable.values()).most_common(MOST_REASONS)),
            "requests": self.requests,
            "attempts": self.attempts,
            "finish_reasons": dict(self.finish_reasons),
            "answered_by": dict(self.answered_by),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.cost, 6) if prices else None,
            "currency": prices.currency if prices else "",
        }

    @property
    def failed(self) -> Counter[str]:
        """Replies that finally failed, by kind, and those that came and cannot be used."""
        return Counter([*self.failed_keys.values(), *["unusable"] * len(self.unusable)])


def brief(reason: str) -> str:
    """A reason without the advice behind it, so that equal ones are counted together."""
    return reason.partition(". ")[0].rstrip(".")[:120]


def refuse_mixture(tally: Tally, settings: OpenAITeacher, folder: Path) -> None:
    """Raises TeacherError when several teachers answered, unless that is allowed."""
    if len(tally.answered_by) > 1 and settings.on_change == "stop":
        who = ", ".join(f"{name} ({count} replies)" for name, count in tally.answered_by.items())
        raise TeacherError(
            f"the teacher changed: {who} answered. Replies of several teachers are not mixed silently. Set "
            f"teacher.on_change=annotate to go on, or move {folder} away to begin anew; nothing is lost."
        )


def refuse_failures(tally: Tally, settings: OpenAITeacher, folder: Path, *, is_last: bool) -> None:
    """Raises TeacherError when too many replies failed; the share is judged among FEW, or when the last one ended."""
    failed, ended = len(tally.failed_keys) + len(tally.unusable), tally.ended
    if failed > settings.max_failed * ended and (ended >= FEW or is_last):
        kinds = ", ".join(f"{count} {kind}" for kind, count in tally.failed.most_common())
        why = Counter(tally.unusable.values()).most_common(1)
        most = f" Most of those that cannot be used: {why[0][0]}." if why else ""
        allowed = f"teacher.max_failed={settings.max_failed:g}"
        raise TeacherError(
            f"{failed} of {ended} replies failed ({kinds}), more than {allowed} allows.{most} The reasons are in "
            f"{folder / 'failed.jsonl'} for shards that are whole, and all of them in {folder / 'journal.jsonl'}. Cure "
            "the cause and set teacher.retry_failed=true, or raise teacher.max_failed; what was answered is kept."
        )
