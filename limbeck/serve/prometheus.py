"""Counts and times in Prometheus' text format (version 0.0.4), by prometheus-client with a registry of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SHORT = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "limbeck_requests_total": ("Requests by endpoint and status.", ("endpoint", "status")),
    "limbeck_tokens_total": ("Tokens by model, of prompts and replies.", ("model", "kind")),
    "limbeck_routes_total": ("Requests by model and by how it was chosen.", ("model", "route")),
    "limbeck_loads_total": ("Experts opened, by result.", ("model", "result")),
    "limbeck_unloads_total": ("Experts closed, by reason.", ("model", "why")),
    "limbeck_upstream_requests_total": ("Requests to other servers, by result.", ("model", "result")),
    "limbeck_upstream_cost_total": ("What the upstream's tokens cost, in the currency of upstream.prices.", ("model",)),
    "limbeck_cancelled_total": ("Requests whose client went away.", ()),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "limbeck_request_seconds": ("Time from a request's head to the end of its answer.", ("endpoint",), SECONDS),
    "limbeck_first_token_seconds": ("Time from a request's head to its first token.", ("model",), SECONDS),
    "limbeck_load_seconds": ("Time to open an expert.", ("model",), SECONDS),
    "limbeck_router_seconds": ("Time to choose an expert.", (), SHORT),
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


class Metrics:
    """Labels are names that the server knows: never what a client wrote."""

    def __init__(self) -> None:
        own = CollectorRegistry(auto_describe=False)
        self._counters = {name: Counter(name, *rest, registry=own) for name, rest in COUNTERS.items()}
        self._histograms = {
            name: Histogram(name, about, labels, registry=own, buckets=buckets)
            for name, (about, labels, buckets) in HISTOGRAMS.items()
        }
        self._registry = own

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        histogram = self._histograms[name]
        (histogram.labels(**labels) if labels else histogram).observe(seconds)

    def render(self, gauges: dict[str, dict[Labels, float]]) -> str:
        """All of it; `gauges` are what is true now."""
        now = [*map(_plain, self._registry.collect()), *(_gauge(name, gauges.get(name, {})) for name in GAUGES)]
        return generate_latest(cast("Collector", SimpleNamespace(collect=lambda: now))).decode()


def _gauge(name: str, values: dict[Labels, float]) -> Metric:
    family = Metric(name, GAUGES[name], "gauge")
    for key, value in values.items():
        family.add_sample(name, dict(key), value)
    return family


def _plain(family: Metric) -> Metric:
    """Without the times at which counting began, and with edges of buckets as le="1", where the library writes "1.0":
    both are as they were before it, and a dashboard may name an edge."""
    family.samples = [
        each._replace(labels={key: it.removesuffix(".0") if key == "le" else it for key, it in each.labels.items()})
        for each in family.samples
        if not each.name.endswith("_created")
    ]
    return family
