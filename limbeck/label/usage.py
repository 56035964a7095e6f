"""What asking an endpoint has come to so far: counts and costs, from the journal's entries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.recipe import Prices


@dataclass
class Tally:
    """What was asked, over all sittings: read from the journal, then counted on. Shown in RUN/traces/asked.json."""

    answered: int = 0  # replies
    failed_keys: dict[str, str] = field(default_factory=dict)  # with their kinds; answered later, they have not
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
        if "failed" in entry:
            self.failed_keys |= dict.fromkeys(entry["keys"], entry["failed"]["kind"])
        if "answer" in entry:
            answer = entry["answer"]
            self.answered += len(entry["keys"])
            for key in entry["keys"] if self.failed_keys else ():
                self.failed_keys.pop(key, None)
            self.finish_reasons.update(choice["finish_reason"] for choice in answer["choices"])
            self.answered_by[" ".join((answer["model"], answer["system_fingerprint"])).strip()] += len(entry["keys"])
            prompt, completion = answer["usage"]
            self.prompt_tokens += prompt or 0
            self.completion_tokens += completion or 0

    @property
    def ended(self) -> int:
        """Replies that are there or finally failed."""
        return self.answered + len(self.failed_keys)

    def facts(self, prices: Prices | None) -> dict[str, Any]:
        """What is shown."""
        return {
            "answered": self.answered,
            "failed": dict(self.failed),
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
        """Replies that finally failed, by kind."""
        return Counter(self.failed_keys.values())
