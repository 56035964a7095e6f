"""Counts and times in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SHORT = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)

COUNTERS = {
    "limbeck_requests_total": "Requests by endpoint and status.",
    "limbeck_tokens_total": "Tokens by model, of prompts and replies.",
    "limbeck_routes_total": "Requests by model and by how it was chosen.",
    "limbeck_loads_total": "Experts opened, by result.",
    "limbeck_unloads_total": "Experts closed, by reason.",
    "limbeck_upstream_requests_total": "Requests to other servers, by result.",
    "limbeck_upstream_cost_total": "What the upstream's tokens cost, in the currency of upstream.prices.",
    "limbeck_cancelled_total": "Requests whose client went away.",
}
HISTOGRAMS = {
    "limbeck_request_seconds": ("Time from a request's head to the end of its answer.", SECONDS),
    "limbeck_first_token_seconds": ("Time from a request's head to its first token.", SECONDS),
    "limbeck_load_seconds": ("Time to open an expert.", SECONDS),
    "limbeck_router_seconds": ("Time to choose an expert.", SHORT),
}
GAUGES = {
    "limbeck_in_flight": "Requests under way or waiting.",
    "limbeck_running": "Replies under way, by model.",
    "limbeck_waiting": "Replies that wait for a slot, by model.",
    "limbeck_tokens_per_second": "Tokens written in the last seconds, by model.",
    "limbeck_model_bytes": "Memory that an open expert is counted with.",
    "limbeck_sequence_bytes": "Memory of sequences under way, by model.",
    "limbeck_experts": "Experts by state.",
    "limbeck_draining": "1 when the server is stopping.",
}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class Metrics:
    """Labels are names that the server knows: never what a client wrote."""

    counters: dict[str, dict[Labels, float]] = field(default_factory=lambda: {name: {} for name in COUNTERS})
    histograms: dict[str, dict[Labels, Histogram]] = field(default_factory=lambda: {name: {} for name in HISTOGRAMS})

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        self.counters[name][key] = self.counters[name].get(key, 0.0) + amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        self.histograms[name].setdefault(key, Histogram(HISTOGRAMS[name][1])).observe(seconds)

    def total(self, name: str) -> float:
        return sum(self.counters[name].values())

    def render(self, gauges: dict[str, dict[Labels, float]]) -> str:
        """All of it; `gauges` are what is true now."""
        lines: list[str] = []
        for name, about in COUNTERS.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} counter"]
            lines += [f"{name}{_labels(key)} {_number(value)}" for key, value in sorted(self.counters[name].items())]
        for name, about in GAUGES.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels(key)} {_number(value)}" for key, value in sorted(gauges.get(name, {}).items())]
        for name, (about, _) in HISTOGRAMS.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
            for key, found in sorted(self.histograms[name].items(), key=lambda item: item[0]):
                lines += _buckets(name, key, found)
        return "\n".join(lines) + "\n"


def _buckets(name: str, key: Labels, found: Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        below += count
        edge = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_labels((*key, ('le', edge)))} {below}")
    return [*lines, f"{name}_sum{_labels(key)} {_number(found.total)}", f"{name}_count{_labels(key)} {below}"]


def _labels(key: Labels) -> str:
    escaped = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in key]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}" if key else ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
