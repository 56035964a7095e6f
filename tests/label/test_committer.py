"""Shards become visible in the order of the plan, whoever makes them and in whatever order."""

import hashlib
from collections import deque

import pytest

from limbeck.errors import Stopped
from limbeck.label.committer import BuiltShard, fill_store
from limbeck.label.local import label_rows, run_label
from limbeck.label.plan import store_header
from limbeck.models.open import open_hf
from limbeck.system.atomic import fingerprint
from limbeck.types import Callbacks
from tests.label.asking import failed_of, rows_of
from tests.recipes import tiny_recipe


@pytest.fixture(scope="module")
def teacher(tiny_llama):
    return open_hf(str(tiny_llama))


@pytest.fixture(scope="module")
def recipe(tiny_llama):
    generate = (
        "trace.mode={kind: generate, n: 2, max_tokens: 4, stop: [e]}",
        "trace.target={kind: hybrid, head: 4, draws: 4}",
    )
    return tiny_recipe(f"teacher.path='{tiny_llama}'", *generate, "trace.batch_tokens=120", "trace.shard_tokens=300")


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return rows_of(tiny_tokenizer, 16)


def files_of(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def here(recipe, path, teacher, rows, **watch):
    watch = {
        "on_progress": lambda progress: None,
        "on_message": lambda message: None,
        "stop_asked": lambda: False,
        **watch,
    }
    return run_label(recipe, path, teacher, rows, Callbacks(**watch))


@pytest.mark.slow
def test_a_runner_of_another_kind_makes_the_same_files(recipe, teacher, rows, tmp_path):
    """As a cluster would: shards are made last one first, and each becomes visible when those before it are."""
    here(recipe, tmp_path / "here", teacher, rows)
    header, seen, built = store_header(recipe, teacher), [], []

    def elsewhere(work, committer):
        for shard in reversed(work.shards):
            seed = int(fingerprint(recipe.seed, [row.id for row in shard.rows])[:15], 16)

            def build(shard=shard, seed=seed):
                built.append(shard.number)
                return BuiltShard(*label_rows(recipe, header, teacher, shard.rows, seed))

            committer.add(shard, build)
            seen.append([one.number for one in committer.commit_ready()])

    store = fill_store(
        recipe, tmp_path / "there", header=header, rows=rows, runner=elsewhere, on_message=lambda message: None
    )
    count = len(store.entries)
    assert count > 3 and seen == [[]] * (count - 1) + [list(range(count))]
    assert built == list(range(count))  # when its turn came, not before
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_what_a_stopped_runner_committed_is_kept_and_the_rest_is_its_next_work(recipe, teacher, rows, tmp_path):
    def stopping(work, committer):
        first, second, *_ = work.shards
        committer.add(second, lambda: pytest.fail("its turn has not come"))
        facts = [{"shard": first.number, "row": "r", "source": "s", "draw": 0, "kind": "k", "reason": "why"}]
        committer.add(first, lambda: BuiltShard([], [], facts))
        committer.waiting = deque([first])
        committer.commit_ready()
        raise Stopped("enough")

    header, left = store_header(recipe, teacher), []
    arguments = {"header": header, "rows": rows, "on_message": lambda message: None}
    with pytest.raises(Stopped):
        fill_store(recipe, tmp_path / "store", runner=stopping, **arguments)
    assert [line["reason"] for line in failed_of(tmp_path / "store")] == ["why"]
    fill_store(recipe, tmp_path / "store", runner=lambda work, committer: left.append(work), **arguments)
    [work] = left
    assert [shard.number for shard in work.shards] == list(range(1, len(work.shards) + 1))
    assert len(work.rows) == len(rows) > sum(len(shard.rows) for shard in work.shards)


def test_local_progress_counts_what_was_written_and_what_was_planned(recipe, teacher, rows, tmp_path):
    """Replies end early (`stop`): the plan is used up all the same, and the rate is of tokens that were there."""
    seen = []
    store = here(recipe, tmp_path / "store", teacher, rows, on_progress=seen.append)
    planned = sum((len(row.ids) + 4) * 2 for row in rows)
    assert seen[-1].done == seen[-1].total == planned and seen[-1].eta == 0.0
    assert sum(len(trace.ids) for trace in store.traces()) < planned
    assert all(progress.eta > 0 for progress in seen[:-1])
