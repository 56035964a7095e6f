"""The store: whole shards or nothing, damage is found and named, targets fit only their own tokens."""

import numpy as np
import pytest
import torch

from limbeck.errors import StoreError
from limbeck.losses.support import SupportSpec, select
from limbeck.store import VERSION, StoreHeader, StoreWriter, TraceStore, context_hash, trace_id
from limbeck.store.writer import holds_rows
from limbeck.system.sealed import write_json
from limbeck.text.packing import labels_of
from limbeck.types import Trace


@pytest.fixture
def header():
    return StoreHeader(
        VERSION, "hybrid", 4, 8, 0.01, "tail", 300, 1.0, "float32", "lm", "tiny", "tok", "", {"kind": "score"}, 0
    )


def make(header, row_id, length=6):
    ids = np.random.default_rng(abs(hash(row_id)) % 1000).integers(0, 300, length).astype(np.int32)
    spans = ((1, 3), (4, length))
    trace = Trace(
        trace_id(row_id, header, 0), row_id, "train", "t", row_id, ids, spans, "lm", "tok", context_hash(ids, spans)
    )
    support = select(torch.randn(trace.num_supervised, 300), SupportSpec(4, 8, 0.01), 1.0, torch.Generator())
    return trace, header.codec.encode(support, labels_of(trace), trace.context_hash, np.random.default_rng(0))


def fill(path, header, shards, only=None):
    writer = StoreWriter.open(path, header, shards)
    for shard, rows in writer.pending():
        if only is None or shard in only:
            traces, records = zip(*[make(header, row) for row in rows], strict=True)
            writer.commit(shard, traces, records)
    return writer


SHARDS = [["a", "b"], ["c"], ["d", "e"]]


def test_what_is_written_is_read(tmp_path, header):
    fill(tmp_path, header, SHARDS)
    store = TraceStore.open(tmp_path)
    traces = store.traces()
    assert [t.row_id for t in traces] == list("abcde")
    want = make(header, "c")[0]
    assert np.array_equal(traces[2].ids, want.ids) and traces[2].spans == want.spans
    joined = store.dists(traces)
    parts = [store.dist(t) for t in traces]
    assert joined.ids_NK.shape[0] == sum(len(p.ids_NK) for p in parts) == store.positions
    assert torch.equal(joined.tail_N, torch.cat([p.tail_N for p in parts]))
    assert store.traces("heldout") == []


def test_a_shard_without_its_manifest_line_does_not_exist(tmp_path, header):
    fill(tmp_path, header, SHARDS, only={0})
    (tmp_path / "shard-00001.targets").write_bytes(b"half")
    (tmp_path / ".shard-00001.parquet.1.tmp").write_bytes(b"half")
    writer = StoreWriter.open(tmp_path, header, SHARDS)
    assert [shard for shard, _ in writer.pending()] == [1, 2]
    assert not list(tmp_path.glob("*00001*")) and not list(tmp_path.glob(".*.tmp"))


def test_half_a_manifest_line_does_not_count_and_is_not_glued(tmp_path, header):
    fill(tmp_path, header, SHARDS, only={0, 1})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])
    fill(tmp_path, header, SHARDS)
    assert len(TraceStore.open(tmp_path).traces()) == 5


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "swap"])
@pytest.mark.parametrize("suffix", ["targets", "parquet"])
def test_damage_is_named_and_only_that_shard_is_made_again(tmp_path, header, damage, suffix):
    fill(tmp_path, header, SHARDS)
    file = tmp_path / f"shard-00001.{suffix}"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "delete":
        file.unlink()
    else:
        file.write_bytes((tmp_path / f"shard-00000.{suffix}").read_bytes())
    with pytest.raises(StoreError, match="shard-00001"):
        TraceStore.open(tmp_path)
    writer = StoreWriter.open(tmp_path, header, SHARDS)
    assert list(writer.drop_damaged()) == [1]
    assert [shard for shard, _ in writer.pending()] == [1]
    fill(tmp_path, header, SHARDS)
    assert len(TraceStore.open(tmp_path).traces()) == 5


def test_new_rows_are_appended_and_old_ones_kept(tmp_path, header):
    fill(tmp_path, header, SHARDS[:2])
    before = (tmp_path / "shard-00000.targets").read_bytes()
    writer = StoreWriter.open(tmp_path, header, [["a", "x"], ["c", "y"]])
    assert writer.pending() == [(2, ["x"]), (3, ["y"])]
    assert (tmp_path / "shard-00000.targets").read_bytes() == before


def test_a_shard_is_not_made_of_some_of_its_rows(tmp_path, header):
    """Whoever wants other rows leaves it alone; its wanted rows get a shard of their own, and count once."""
    fill(tmp_path, header, SHARDS, only={0})
    writer = StoreWriter.open(tmp_path, header, [["d"]])
    assert writer.pending() == [(3, ["d"])]
    fill(tmp_path, header, [["d"]])
    assert holds_rows(tmp_path, "abd") and not holds_rows(tmp_path, "de")
    fill(tmp_path, header, SHARDS)
    assert [trace.row_id for trace in TraceStore.open(tmp_path).traces()] == list("abcde")
    assert holds_rows(tmp_path, "abcde")


def test_rows_of_a_damaged_shard_are_made_again_for_whoever_wants_some_of_them(tmp_path, header):
    fill(tmp_path, header, SHARDS)
    writer = StoreWriter.open(tmp_path, header, [["d"]])
    writer.drop([2])
    writer.want([["d"]])
    assert writer.pending() == [(3, ["d"])]


def test_targets_fit_only_the_tokens_they_were_made_for(tmp_path, header):
    """Statement 14."""
    fill(tmp_path, header, SHARDS)
    store = TraceStore.open(tmp_path)
    trace = store.traces()[0]
    ids = trace.ids.copy()
    ids[-1] ^= 1
    with pytest.raises(StoreError, match="other tokens"):
        store.dist(Trace(**{**vars(trace), "ids": ids}))
    with pytest.raises(StoreError, match="not in the store"):
        store.dist(Trace(**{**vars(trace), "id": "unknown"}))


def test_another_header_is_refused(tmp_path, header):
    fill(tmp_path, header, SHARDS)
    other = StoreHeader(**{**vars(header), "temperature": 2.0})
    with pytest.raises(StoreError, match="cannot be mixed"):
        StoreWriter.open(tmp_path, other, SHARDS)
    write_json(tmp_path / "store.json", {**vars(header), "version": 99})
    with pytest.raises(StoreError, match="version 99"):
        TraceStore.open(tmp_path)
    with pytest.raises(StoreError, match="limbeck label"):
        TraceStore.open(tmp_path / "nowhere")
