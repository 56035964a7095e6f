"""How much may be used a minute: a token bucket in its virtual scheduling form (GCRA, ITU-T I.371)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Rate:
    """`per_minute`, handed out evenly, at once at most what flows in `burst_seconds`. All times are of one clock."""

    per_minute: float
    burst_seconds: float
    _full_at: float = float("-inf")  # when the bucket is full again

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        seconds = max(self._full_at - now, 0.0) + self._seconds(amount) - self.burst_seconds
        return max(round(seconds, 6), 0.0)  # to the microsecond: what is left by rounding makes nobody wait

    def spend(self, amount: float, now: float) -> None:
        """Take `amount`, whether or not it is there: what is spent beyond is owed."""
        self._full_at = max(self._full_at, now) + self._seconds(amount)

    def refund(self, amount: float) -> None:
        """Give back what was spent and not used."""
        self._full_at -= self._seconds(amount)

    def _seconds(self, amount: float) -> float:
        return amount * 60.0 / self.per_minute
