"""A run whose target is votes: a teacher in this process, its replies counted, stored, and trained on."""

from collections import Counter

import pytest

from limbeck.pipeline.run import run_recipe
from limbeck.store import TraceStore
from limbeck.text.packing import labels_of
from tests.pipeline.test_run import recipe_of

pytestmark = pytest.mark.slow  # one whole run, or one export, stands behind all of it

N = 6


@pytest.fixture(scope="module")
def run(tiny_llama, text_jsonl, tmp_path_factory):
    """Replies of two tokens from a sharpened teacher: many are equal."""
    mode = {"kind": "generate", "n": N, "temperature": 0.4, "max_tokens": 2}
    recipe = recipe_of(
        tiny_llama, text_jsonl, trace__mode=mode, trace__target={"kind": "votes"}, data__limit=12, train__twin=True
    )
    folder = tmp_path_factory.mktemp("votes")
    return folder, run_recipe(recipe, folder, estimate=True)


def test_shares_of_replies_are_stored(run):
    store = TraceStore.open(run[0] / "traces")
    by_row = {}
    for trace in store.traces():
        by_row.setdefault(trace.row_id, []).append(trace)
    assert any(len(traces) < N for traces in by_row.values()) and any(len(traces) > 1 for traces in by_row.values())
    for traces in by_row.values():
        assert sum(trace.meta["votes"] for trace in traces) == N
        replies = [tuple(labels_of(trace)) for trace in traces]
        assert len(set(replies)) == len(replies)
        votes = {reply: trace.meta["votes"] for reply, trace in zip(replies, traces, strict=True)}
        for trace, reply in zip(traces, replies, strict=True):
            assert trace.meta["weight"] == trace.meta["votes"] / N
            dist = store.dist(trace)
            for place in range(len(reply)):
                going_on = Counter()
                for other, count in votes.items():
                    if other[:place] == reply[:place] and len(other) > place:
                        going_on[other[place]] += count
                found = zip(dist.ids_NK[place].tolist(), dist.logp_NK[place].exp().tolist(), strict=True)
                shares = {token: count / going_on.total() for token, count in going_on.items()}
                assert {token: p for token, p in found if token >= 0} == pytest.approx(shares)


def test_the_run_ends_with_a_report(run):
    folder, summary = run
    assert summary["verdict"]
    assert '"label"' in (folder / "estimate.json").read_text()
