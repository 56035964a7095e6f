"""Labelling by an endpoint: nothing lost, nothing asked twice, and the store a function of the answers alone."""

import errno
import json
import os
import random
import signal
import time

import numpy as np
import pytest

from limbeck.endpoint import rate_limit, retry
from limbeck.errors import BudgetError, Stopped, StoreError, TeacherError
from limbeck.store import TraceStore
from tests.endpoint.fake_answers import reply_of
from tests.endpoint.fake_server import FakeServer, in_turn
from tests.label.asking import (
    KEY,
    ask,
    ask_until_killed,
    failed_of,
    files_of,
    journal_of,
    recipe_of,
    rows_of,
)

UNUSABLE = "the reply contains the control token '<|im_end|>'"
PRICES = "teacher.prices={input: 1.0, output: 1000.0}"  # a reply has 2 to 7 words of 0.001 each; 8 are allowed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rate_limit, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retry, "UNKNOWN_SECONDS", 0.3)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return rows_of(tiny_tokenizer)


@pytest.fixture
def go(server, rows, tiny_tokenizer, tmp_path):
    """`go("teacher.x=1")` fills the store of this test."""

    def run(*overrides: str, path=tmp_path / "traces", only=rows, **watch) -> TraceStore:
        return ask(recipe_of(server.url, *overrides), path, tiny_tokenizer, only, **watch)

    return run


@pytest.fixture
def traces(tmp_path):
    return tmp_path / "traces"


def test_every_row_is_asked_once_and_becomes_a_trace(go, server, rows, traces, tiny_tokenizer):
    store = go()
    assert len(server.counts) == len(rows) and set(server.counts.values()) == {1}
    by_row = {trace.row_id: trace for trace in store.traces()}
    assert by_row.keys() == {row.id for row in rows}
    for row in rows:
        trace = by_row[row.id]
        [(start, end)] = trace.spans
        assert trace.split == row.split and end == len(trace.ids)
        np.testing.assert_array_equal(trace.ids[:start], row.ids)
        assert tiny_tokenizer.decode(trace.ids[start:]) == trace.meta["reply"] + "<|im_end|>"
        assert trace.meta["finish_reason"] == "stop" and trace.meta["model"] == "stub-1"
    assert {trace.meta["reply"] for trace in by_row.values()} <= {reply_of(key) for key in server.counts}
    assert len(store.entries) > 3 and failed_of(traces) == []
    asked = json.loads((traces / "asked.json").read_text())
    assert asked["answered"] == asked["requests"] == asked["attempts"] == 40 and asked["cost"] is None


def test_a_second_sitting_asks_nothing(go, server, traces):
    go()
    before = files_of(traces)
    seen = []
    go(on_progress=seen.append)
    assert server.counts.total() == 40 and files_of(traces) == before
    assert seen[-1].done == seen[-1].total == 40


def test_faults_change_nothing_but_the_time(go, server, traces, tmp_path):
    """Every row meets some of the faults that pass; the store is the one of a server without any."""
    go(path=tmp_path / "clean")
    faults = ["429", "503", "529", "500", "502", "408", "409", "reset", "cut", "chunk-cut", "garbage", "html", "empty",
              "bad-utf8", "surrogate", "types", "empty-choices", "too-many", "deep",
              "hidden-error"]  # fmt: skip
    server.counts.clear()
    server.script = lambda seen: faults[(int(seen.key, 16) + seen.attempt) % len(faults)] if seen.attempt < 2 else None
    messages: list[str] = []
    go(messages=messages)
    assert set(server.counts.values()) == {3} and set(server.answered.values()) == {2}
    clean = {name: digest for name, digest in files_of(tmp_path / "clean").items()}
    assert files_of(traces) == clean
    troubles = json.loads((traces / "asked.json").read_text())["troubles_of_last_sitting"]
    assert {"overload", "server", "reset", "malformed"} <= troubles.keys()
    assert len(messages) == len(troubles)  # each kind is told once


@pytest.mark.slow
def test_waits_at_least_as_long_as_it_is_told(go, server, rows):
    """One request at a time: which others were sent before the answer came does not depend on the machine."""
    server.script = lambda seen: "429-after" if seen.number == 0 else None
    go("teacher.concurrency=1", only=rows[:3])
    assert len(server.times) == 4 and server.times[1] - server.times[0] >= 1.0


def test_concurrency_falls_when_it_is_too_much(go, server):
    """A server that takes three at once: the others are sent away, and everything is answered in the end."""
    server.latency = 0.02
    server.script = lambda seen: "429" if server.in_flight > 3 else None
    levels = []
    go(on_progress=lambda progress: levels.append(progress.values.get("at_once", 8)))
    assert min(levels) <= 4 and len(server.answered) == 40 and set(server.answered.values()) == {1}


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_n_replies_in_requests_of_three(go, server, rows):
    server.latency = 0.0
    store = go("trace.mode.n=5", "teacher.samples_per_request=3")
    assert server.counts.total() == 2 * 40 and set(server.counts.values()) == {1}
    for row in rows:
        draws = [trace for trace in store.traces() if trace.row_id == row.id]
        assert [trace.meta["draw"] for trace in draws] == [0, 1, 2, 3, 4]
        assert len({trace.meta["reply"] for trace in draws}) > 1 and len({trace.id for trace in draws}) == 5


def test_a_server_that_gives_one_of_three(go, server, traces):
    """As `transformers serve` does: nothing is missing, and it is said."""
    server.script = lambda seen: "fewer"
    messages: list[str] = []
    store = go("trace.mode.n=3", "teacher.samples_per_request=3", messages=messages)
    assert len(store.traces()) == 120 and any("one by one" in message for message in messages)
    assert set(server.counts.values()) == {1} and server.counts.total() == 120


def test_seeds_are_those_of_row_and_draw(go, server, traces, tmp_path):
    go("trace.mode.n=2")
    first = set(server.counts)
    assert len(first) == 80
    server.counts.clear()
    go("trace.mode.n=2", path=tmp_path / "again")
    assert set(server.counts) == first
    server.counts.clear()
    go("trace.mode.n=2", "seed=1", path=tmp_path / "other")
    assert not set(server.counts) & first


# ---- what ends a reply -----------------------------------------------------------------------------------------------


def test_cut_filtered_and_reasoned_replies(go, server, rows, tiny_tokenizer):
    kinds = ["length", "filtered", "refusal", "reasoning", None]
    server.script = lambda seen: kinds[int(seen.said.split()[-1]) % 5]
    found = {trace.row_id: trace for trace in go("teacher.max_failed=0.5").traces()}
    for number, row in enumerate(rows):
        if kinds[number % 5] == "refusal":  # nothing is learnt of it
            assert row.id not in found
            continue
        trace = found[row.id]
        text = tiny_tokenizer.decode(trace.ids[trace.spans[0][0] :])
        kind = kinds[number % 5]
        ends = {"length": "length", "filtered": "content_filter"}
        assert trace.meta["finish_reason"] == ends.get(kind, "stop")
        assert text.endswith("<|im_end|>") == (kind in (None, "reasoning"))
        if kind == "reasoning":
            assert text.startswith("<think>\nlet me see\n</think>\n\n")


# ---- rows that fail --------------------------------------------------------------------------------------------------


def number_of(seen) -> int:
    return int(seen.said.split()[-1])


def test_failed_rows_are_set_aside_with_their_reasons(go, server, rows, traces):
    bad = {3: "context", 7: "filter-400", 11: "garbage", 12: "blank", 13: "control", 17: "422"}
    server.script = lambda seen: bad.get(number_of(seen))
    store = go("teacher.max_failed=0.3")
    failed = {line["source"]: line for line in failed_of(traces)}
    assert {source: line["kind"] for source, line in failed.items()} == {
        "birds.jsonl:3": "context_length",
        "birds.jsonl:7": "content_filter",
        "birds.jsonl:11": "malformed",
        "birds.jsonl:12": "unusable",
        "birds.jsonl:13": "unusable",
        "birds.jsonl:17": "invalid",
    }
    assert "maximum context length" in failed["birds.jsonl:3"]["reason"]
    assert {trace.row_id for trace in store.traces()} == {row.id for n, row in enumerate(rows) if n not in bad}
    asked = json.loads((traces / "asked.json").read_text())
    assert asked["failed"] == {"context_length": 1, "content_filter": 1, "malformed": 1, "invalid": 1, "unusable": 2}
    assert set(asked["unusable"]) == {"the reply is empty (it ended by 'stop')", UNUSABLE}
    malformed = [count for key, count in server.counts.items() if count > 1]
    assert malformed == [3]  # malformed_tries
    before = files_of(traces)
    go("teacher.max_failed=0.3")
    assert files_of(traces) == before and server.counts.total() == 42


def test_too_many_failures_stop_and_can_be_tried_again(go, server, traces, tmp_path):
    server.script = lambda seen: "context" if number_of(seen) % 5 == 0 else None
    with pytest.raises(TeacherError, match=r"replies failed \(\d+ context_length\), more than teacher.max_failed=0.05"):
        go()
    server.script = lambda seen: None
    store = go("teacher.retry_failed=true")
    assert len(store.traces()) == 40 and failed_of(traces) == []
    assert set(server.answered.values()) == {1}
    go(path=tmp_path / "clean")
    assert files_of(traces) == {**files_of(tmp_path / "clean"), "failed.jsonl": files_of(traces)["failed.jsonl"]}


def test_failed_rows_of_finished_shards_can_be_tried_again(go, server, traces):
    server.script = lambda seen: "context" if number_of(seen) == 3 else None
    go()
    assert len(failed_of(traces)) == 1
    server.script = lambda seen: None
    assert len(go("teacher.retry_failed=true").traces()) == 40
    assert failed_of(traces) == [] and server.counts.total() == 41


def test_a_row_that_fails_while_others_do_not_is_given_up_alone(go, server, traces):
    server.latency = 0.02
    server.script = lambda seen: "500" if number_of(seen) == 3 else None
    store = go("teacher.retry_minutes=0.002", "teacher.concurrency=2")
    assert len(store.traces()) == 39 and failed_of(traces)[0]["kind"] == "server"


# ---- what ends the job -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["401", "403", "404", "quota"])
def test_what_nobody_is_spared_ends_at_once_and_keeps_the_work(go, server, traces, fault):
    server.latency = 0.02
    server.script = lambda seen: fault if seen.number >= 20 else None
    begun = time.monotonic()
    with pytest.raises(TeacherError) as caught:
        go()
    assert caught.value.exit_code == 4 and time.monotonic() - begun < 20  # where it could retry for half an hour
    control = fault == "403"  # a harmless question shows whether it is this prompt or all of them
    assert len(journal_of(traces)) == 20 and server.counts.total() <= 28 + control  # those under way, and not one more
    server.script = lambda seen: None
    assert len(go().traces()) == 40
    assert set(server.answered.values()) == {1}


def test_an_endpoint_that_is_gone_ends_the_job(go, server, traces):
    server.script = lambda seen: "503" if seen.number >= 20 else None
    with pytest.raises(TeacherError, match="fails for"):
        go("teacher.retry_minutes=0.003")
    assert len(journal_of(traces)) == 20 and not failed_of(traces)
    server.script = lambda seen: None
    assert len(go().traces()) == 40


def test_a_wait_that_is_longer_than_allowed(go, server):
    server.script = lambda seen: "429-long"
    with pytest.raises(TeacherError, match=r"asks to wait 27 h 46 min, and teacher.retry_minutes allows 30 min"):
        go()


def test_an_address_where_nobody_listens(rows, tiny_tokenizer, traces):
    begun = time.monotonic()
    with pytest.raises(TeacherError, match="cannot be reached"):
        ask(recipe_of("http://127.0.0.1:9/v1"), traces, tiny_tokenizer, rows)
    assert time.monotonic() - begun < 20


def test_a_budget_is_never_exceeded_and_work_is_kept(go, server, traces):
    with pytest.raises(BudgetError, match=r"max_cost is 0.1 USD.*is spent") as caught:
        go(PRICES, "teacher.max_cost=0.1")
    assert caught.value.exit_code == 5
    spent = sum(entry["cost"] for entry in journal_of(traces))
    asked = json.loads((traces / "asked.json").read_text())
    assert 0.09 < spent <= 0.1 and asked["cost"] == pytest.approx(spent) and asked["currency"] == "USD"
    answered = server.counts.total()
    assert answered == len(journal_of(traces)) >= 15
    with pytest.raises(BudgetError):  # again: not one more request
        go(PRICES, "teacher.max_cost=0.1")
    assert server.counts.total() == answered
    assert len(go(PRICES, "teacher.max_cost=5").traces()) == 40
    assert set(server.counts.values()) == {1}


def test_what_may_have_been_billed_counts_at_its_worst(go, server, rows, traces):
    """Malformed answers and silence may cost as much as whole ones; refusals do not."""
    server.script = in_turn("garbage", "429")
    go(PRICES, only=rows[:1])
    [entry] = journal_of(traces)
    words = len(entry["answer"]["choices"][0]["text"].split())
    assert entry["attempts"] == 3 and entry["cost"] == pytest.approx(0.001 * (8 + words), abs=2e-4)


# ---- rejection sampling -----------------------------------------------------------------------------------------


ENOUGH = ("trace.mode.n=6", "trace.mode.rejection={verifier: {kind: regex, pattern: heron}, num_correct: 2}")


def replies_of(store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for trace in sorted(store.traces(), key=lambda trace: trace.meta["draw"]):
        found.setdefault(trace.row_id, []).append(trace.meta["reply"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 4])
def test_a_prompt_is_asked_until_enough_replies_are_right(go, server, traces, tmp_path, group):
    everything = replies_of(go("trace.mode.n=6", f"teacher.samples_per_request={group}", path=tmp_path / "all"))
    asked = server.counts.total()
    store = go(*ENOUGH, f"teacher.samples_per_request={group}")
    spared = 0
    for row, replies in everything.items():
        right = np.cumsum(["heron" in reply for reply in replies])
        needed = int(np.argmax(right >= 2)) + 1 if right[-1] >= 2 else 6
        assert replies_of(store)[row] == replies[:needed]
        spared += 6 - -(-needed // group) * group if needed < 6 else 0
    assert spared > 20
    facts = json.loads((traces / "asked.json").read_text())
    assert facts["answered"] + facts["spared"] == facts["replies"] == 240
    assert facts["spared"] >= spared and (group > 1 or facts["spared"] == spared)
    assert server.counts.total() - asked < asked


@pytest.mark.slow
def test_asking_until_enough_is_resumed_where_it_was_killed(go, server, rows, traces, tmp_path):
    go(*ENOUGH, path=tmp_path / "undisturbed")
    server.counts.clear()
    moments = random.Random(5)
    for _ in range(6):
        count = moments.randrange(1, 25)
        if ask_until_killed(recipe_of(server.url, *ENOUGH), traces, at="append", count=count) == 0:
            break
    go(*ENOUGH)
    assert files_of(traces) == files_of(tmp_path / "undisturbed")
    assert sum(count - 1 for count in server.counts.values()) <= 6 * 8  # what was under way at a kill


# ---- another teacher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["other-model", "other-fingerprint"])
def test_a_teacher_that_changes_is_not_mixed_in_silence(go, server, traces, fault):
    server.script = lambda seen: fault if seen.number >= 20 else None
    with pytest.raises(TeacherError, match=r"stub-1 fp_a \(1\d|20 replies\)"):
        go()
    with pytest.raises(TeacherError, match="the teacher changed"):  # still
        go()
    messages: list[str] = []
    store = go("teacher.on_change=annotate", messages=messages)
    who = [(trace.meta["model"], trace.meta["system_fingerprint"]) for trace in store.traces()]
    assert len(who) == 40 and len(set(who)) == 2 and who.count(("stub-1", "fp_a")) == 20
    assert set(server.counts.values()) == {1}


def test_another_teacher_is_refused_and_another_port_is_the_same(go, server, traces, rows, tiny_tokenizer):
    go()
    with pytest.raises(StoreError, match="another teacher"):
        go("teacher.model=stub-9")
    with FakeServer() as other:
        ask(recipe_of(other.url, "teacher.concurrency=2"), traces, tiny_tokenizer, rows)
        assert other.counts.total() == 0


# ---- stopped and killed ----------------------------------------------------------------------------------------------


def test_stopped_on_request_what_is_under_way_is_kept(go, server, traces):
    server.latency = 0.05
    with pytest.raises(Stopped) as caught:
        go(stop_asked=lambda: server.counts.total() >= 20)
    assert caught.value.exit_code == 75
    assert len(journal_of(traces)) == server.counts.total() == len(server.answered) < 40
    assert len(go().traces()) == 40 and set(server.counts.values()) == {1}


def test_a_damaged_line_is_asked_again_and_a_damaged_shard_is_not(go, server, traces):
    go()
    before = files_of(traces)
    shard = traces / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    go()
    manifest = files_of(traces)["manifest.jsonl"]  # a shard that was made again stands last in it
    assert files_of(traces) == {**before, "manifest.jsonl": manifest} and server.counts.total() == 40
    shard.unlink()
    lines = (traces / "journal.jsonl").read_bytes().splitlines(keepends=True)
    last = lines[-1].replace(b"stub-1", b"stub-7")
    (traces / "journal.jsonl").write_bytes(b"".join([*lines[:-1], last]))
    for file in traces.glob("shard-*.parquet"):
        file.unlink()
    messages: list[str] = []
    go(messages=messages)
    assert server.counts.total() == 41 and "line 40 of journal.jsonl is damaged" in " ".join(messages)
    assert {name: files_of(traces)[name] for name in before if "shard" in name} == {
        name: digest for name, digest in before.items() if "shard" in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "append", "half", "fsync"])
def test_killed_again_and_again(server, rows, tiny_tokenizer, traces, tmp_path, at):
    """At random times, after and within lines of the journal, and at fsyncs: of journal, shards and manifests. Each
    request is answered once, besides those that were under way at a kill."""
    recipe = recipe_of(server.url, "teacher.on_change=annotate")
    ask(recipe, tmp_path / "straight", tiny_tokenizer, rows)
    server.answered.clear()
    server.latency, kills, rng = 0.02, 0, random.Random(at)
    for _ in range(4):
        delay = rng.uniform(0.02, 0.2) if at == "start" else 0.0
        code = ask_until_killed(recipe, traces, at=at, count=1 if at == "start" else rng.randint(2, 14), delay=delay)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert kills >= 3
    time.sleep(3 * server.latency)  # what was under way arrives nowhere
    ask(recipe, traces, tiny_tokenizer, rows)
    assert files_of(traces) == files_of(tmp_path / "straight")
    assert len(server.answered) == 40 and server.answered.total() <= 40 + kills * 8
    keys = [key for entry in journal_of(traces) for key in entry["keys"]]
    assert len(keys) == len(set(keys)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_what_is_paid_is_kept(server, rows, tiny_tokenizer, traces, by):
    recipe = recipe_of(server.url)
    server.latency = 0.1
    assert ask_until_killed(recipe, traces, at="append", count=10, by=by) == 75
    assert len(journal_of(traces)) == server.counts.total() == server.answered.total() < 40
    ask(recipe, traces, tiny_tokenizer, rows)
    assert set(server.counts.values()) == {1} and len(server.counts) == 40


def test_a_full_disk_keeps_what_was_answered(go, server, traces, monkeypatch):
    """Journal lines, shards: wherever it fills up, the same command ends well when there is space again."""
    rest = [3000]

    def write(fd: int, data: bytes) -> int:
        rest[0] -= len(data)
        if rest[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os_write(fd, data)

    os_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(BudgetError, match="disk is full"):
            go()
    kept = len(journal_of(traces))
    assert 0 < kept < 20
    assert len(go().traces()) == 40
    assert server.answered.total() <= 40 + 8 and len(server.answered) == 40


def test_an_fsync_that_fails_is_never_success(go, server, traces, monkeypatch):
    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("journal.jsonl"):
            raise OSError(errno.EIO, "Input/output error")
        os_fsync(fd)

    os_fsync = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="does not confirm"):
            go()
    assert not TraceStore.open(traces).traces()
    assert len(go().traces()) == 40


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_file_and_no_message(go, server, traces, caplog, capfd):
    caplog.set_level("DEBUG")
    messages: list[str] = []
    server.script = lambda seen: {3: "echo", 5: "garbage", 7: "429"}.get(number_of(seen)) if seen.attempt < 2 else None
    go(messages=messages)
    server.script = lambda seen: "401"
    with pytest.raises(TeacherError) as caught:
        go("seed=3", path=traces.with_name("refused"), messages=messages)
    assert f"Bearer {KEY}" in server.keys
    texts = {str(file): file.read_bytes() for file in traces.parent.rglob("*") if file.is_file()}
    texts |= {"error": str(caught.value).encode(), "messages": " ".join(messages).encode()}
    texts |= {"log": caplog.text.encode(), "screen": "".join(capfd.readouterr()).encode()}
    parts = [KEY[at : at + 6].encode() for at in range(len(KEY) - 5)]
    assert not [(name, part) for name, text in texts.items() for part in parts if part in text]
