"""What /metrics gives: names, labels and help of the first version, read by the library's own parser."""

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from limbeck.serve.prometheus import SECONDS, SHORT, Metrics

COUNTERS = {
    "limbeck_requests": ("Requests by endpoint and status.", {"endpoint", "status"}),
    "limbeck_tokens": ("Tokens by model, of prompts and replies.", {"model", "kind"}),
    "limbeck_routes": ("Requests by model and by how it was chosen.", {"model", "route"}),
    "limbeck_loads": ("Experts opened, by result.", {"model", "result"}),
    "limbeck_unloads": ("Experts closed, by reason.", {"model", "why"}),
    "limbeck_upstream_requests": ("Requests to other servers, by result.", {"model", "result"}),
    "limbeck_upstream_cost": (
        "What the upstream's tokens cost, in the currency of upstream.prices.",
        {"model"},
    ),
    "limbeck_cancelled": ("Requests whose client went away.", set()),
}
HISTOGRAMS = {
    "limbeck_request_seconds": ("Time from a request's head to the end of its answer.", {"endpoint"}, SECONDS),
    "limbeck_first_token_seconds": ("Time from a request's head to its first token.", {"model"}, SECONDS),
    "limbeck_load_seconds": ("Time to open an expert.", {"model"}, SECONDS),
    "limbeck_router_seconds": ("Time to choose an expert.", set(), SHORT),
}


def scraped(metrics, gauges=None):
    return {family.name: family for family in text_string_to_metric_families(metrics.render(gauges or {}))}


def test_counters_keep_their_names_labels_and_help():
    metrics = Metrics()
    for name, (_, labels) in COUNTERS.items():
        metrics.count(f"{name}_total", 3, **dict.fromkeys(labels, "a"))
        metrics.count(f"{name}_total", **dict.fromkeys(labels, "a"))
    found = scraped(metrics)
    for name, (about, labels) in COUNTERS.items():
        family = found[name]
        assert (family.type, family.documentation) == ("counter", about)
        assert [(s.name, set(s.labels), s.value) for s in family.samples] == [(f"{name}_total", labels, 4.0)]


def test_histograms_keep_their_buckets_as_they_were_written():
    metrics = Metrics()
    for name, (_, labels, _) in HISTOGRAMS.items():
        metrics.observe(name, 0.002, **dict.fromkeys(labels, "a"))
    found = scraped(metrics)
    assert set(found) >= set(HISTOGRAMS) and not [name for name in found if name.endswith("_created")]
    for name, (about, labels, edges) in HISTOGRAMS.items():
        family = found[name]
        assert (family.type, family.documentation) == ("histogram", about)
        buckets = [s for s in family.samples if s.name == f"{name}_bucket"]
        assert [s.labels["le"] for s in buckets] == [*(f"{edge:g}" for edge in edges), "+Inf"]
        assert [s.value for s in buckets] == [float(edge >= 0.002) for edge in (*edges, float("inf"))]
        assert all(set(s.labels) == {*labels, "le"} for s in buckets)
        assert {s.name: s.value for s in family.samples[-2:]} == {f"{name}_count": 1.0, f"{name}_sum": 0.002}


def test_gauges_are_what_is_true_now():
    metrics = Metrics()
    key = (("model", 'a"\\\n'),)
    found = scraped(metrics, {"limbeck_running": {key: 2}, "limbeck_draining": {(): 1.0}})
    assert [(s.labels, s.value) for s in found["limbeck_running"].samples] == [(dict(key), 2.0)]
    assert found["limbeck_draining"].samples[0].value == 1.0
    assert scraped(metrics)["limbeck_running"].samples == []
    assert len([name for name in found if name.startswith("limbeck_")]) == len(COUNTERS) + len(HISTOGRAMS) + 8


def test_servers_share_nothing():
    one, other = Metrics(), Metrics()
    one.count("limbeck_cancelled_total")
    assert scraped(other)["limbeck_cancelled"].samples[0].value == 0
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("limbeck")]


def test_an_unknown_name_is_our_mistake():
    with pytest.raises(KeyError):
        Metrics().count("limbeck_nonsense_total")
