"""Asking through batches: each request is submitted once, whatever ends a batch or the job; and the store is that of
asking live."""

import json

import pytest

from limbeck.endpoint import batch_api
from limbeck.errors import BudgetError, Stopped, TeacherError
from limbeck.label import remote_batches as jobs
from limbeck.store import reply_log as journals
from tests.endpoint.fake_answers import as_json, error
from tests.endpoint.fake_batches import BatchServer, Plan
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY, ask, failed_of, files_of, journal_of, recipe_of, rows_of

BATCH = (
    "teacher.mode=batch",
    "teacher.batch_poll_seconds=0.01",
    "teacher.concurrency=16",
    "teacher.timeout_seconds=600",
)
PRICES = "teacher.prices={input: 1000.0, output: 1000.0}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs, "TICK", 0.01)
    monkeypatch.setattr(batch_api, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return rows_of(tiny_tokenizer, 12)


@pytest.fixture
def go(rows, tiny_tokenizer, tmp_path):
    """`go(server, "teacher.x=1")` fills the store of this test through batches."""

    def run(server, *overrides, live=False, folder="traces", only=rows, **watch):
        with FakeServer(server.answer) as at:
            recipe = recipe_of(at.url, *(() if live else BATCH), "teacher.max_failed=0.5", *overrides)
            return ask(recipe, tmp_path / folder, tiny_tokenizer, only, **watch)

    return run


def files_but_book(path):
    return {name: digest for name, digest in files_of(path).items() if name != "batches.jsonl"}


def asked_once(server):
    names = [name for batch in server.submitted for name in batch]
    return len(names) == len(set(names))


def test_a_batch_gives_what_asking_live_gives(go, rows, tmp_path):
    server, straight = BatchServer(), BatchServer()
    store = go(server, "trace.mode.n=2")
    assert len(store.traces()) == 2 * len(rows) and server.live == 0
    assert [len(batch) for batch in server.submitted] == [2 * len(rows)]
    go(straight, "trace.mode.n=2", live=True, folder="live")
    assert straight.live == 2 * len(rows)
    assert files_but_book(tmp_path / "traces") == files_but_book(tmp_path / "live")
    again = BatchServer()
    go(again, "trace.mode.n=2")
    assert not again.submitted


def test_several_samples_in_one_request(go, rows):
    server = BatchServer()
    store = go(server, "trace.mode.n=4", "teacher.samples_per_request=4")
    assert len(store.traces()) == 4 * len(rows) and [len(batch) for batch in server.submitted] == [len(rows)]


def test_files_are_of_bounded_size(go, rows):
    server = BatchServer()
    go(server, "teacher.batch_requests=5")
    assert [len(batch) for batch in server.submitted] == [5, 5, 2] and asked_once(server)


def test_what_has_no_result_is_asked_again_and_nothing_else(go, rows, tmp_path):
    """Expired in the middle, with results, refusals for good, a server error, and lines of no use."""
    server = BatchServer([Plan("expired", lost=(1, 4), refused=(2,), failed=(3,), garbage=True), Plan()])
    said = []
    store = go(server, messages=said)
    first, second = server.submitted
    assert set(second) == {first[1], first[4], first[3]}
    assert len(store.traces()) == len(rows) - 1
    (lacking,) = failed_of(tmp_path / "traces")
    assert lacking["kind"] == "context_length"
    assert any("is expired: 3 requests have no result" in text for text in said)


def test_requests_that_never_come_back_are_given_up(go):
    server = BatchServer([Plan(lost=(0,))])
    with pytest.raises(TeacherError, match="without a result from 5 batches"):
        go(server)
    assert [len(batch) for batch in server.submitted] == [12, 1, 1, 1, 1]


def test_malformed_results_are_asked_again_and_at_last_set_aside(go, tmp_path, monkeypatch):
    monkeypatch.setattr(BatchServer, "_answer", staticmethod(lambda body: {"choices": []}))
    with pytest.raises(TeacherError, match="replies failed"):
        go(BatchServer(), "teacher.malformed_tries=2")
    kinds = {entry["failed"]["kind"] for entry in journal_of(tmp_path / "traces") if "failed" in entry}
    assert kinds == {"malformed"}


def test_a_batch_that_fails_as_a_whole_ends_the_job(go):
    server = BatchServer([Plan("failed", problem="line 1: no such model", code="invalid_json_line")])
    with pytest.raises(TeacherError, match="failed as a whole: line 1: no such model"):
        go(server)
    with pytest.raises(TeacherError, match="failed as a whole"):
        go(server)
    assert len(server.submitted) == 1


def test_a_full_queue_is_waited_for(go, rows):
    """Two batches, the second of which the account has no room for until the first has ended."""
    full = Plan("failed", problem="Enqueued token limit reached", code="token_limit_exceeded", looks=1)
    server = BatchServer([Plan(looks=6), full, Plan()])
    store = go(server, "teacher.batch_requests=6")
    assert len(store.traces()) == len(rows) and [len(batch) for batch in server.submitted] == [6, 6, 6]
    with pytest.raises(TeacherError, match="takes no batch: Enqueued token limit"):
        go(BatchServer([full]), folder="other")


def test_an_endpoint_without_batches(go):
    class Bare(BatchServer):
        answer = as_json(error("not found"), "404 X")

    with pytest.raises(TeacherError, match="has no batches"):
        go(Bare())


@pytest.mark.parametrize("gone", ["batch", "content"])
def test_what_is_not_found_is_told_as_such_and_nothing_is_paid_twice(go, rows, gone):
    """And not as "no batches: ask live"."""
    server = BatchServer(gone=(gone,))
    with pytest.raises(TeacherError, match="(batch batch-0|file file-1) is not found there") as caught:
        go(server, "teacher.retry_minutes=0.0005")
    assert "live" not in str(caught.value)
    server.gone = ()
    assert len(go(server).traces()) == len(rows) and len(server.submitted) == 1


NOT_READY = {
    "OpenAI": (404, json.dumps({"detail": "Input file not found"}).encode()),
    "Azure": (400, error("The file is not ready; its status is pending", "invalidPayload")),
    "another": (409, error("file is still being processed")),
}


@pytest.mark.parametrize("kind", NOT_READY)
def test_a_file_that_is_not_ready_is_waited_for(go, rows, kind):
    server = BatchServer(not_ready=[NOT_READY[kind]] * 3)
    assert len(go(server).traces()) == len(rows) and len(server.submitted) == 1


def test_a_batch_that_is_refused_for_another_reason_is_not(go):
    server = BatchServer(not_ready=[(400, error("completion_window must be 24h", "invalid_request"))])
    with pytest.raises(TeacherError, match="refuses the batch.*completion_window"):
        go(server)


@pytest.mark.parametrize("word", ["COMPLETED", "Completed", "SUCCESS", "JOB_STATE_SUCCEEDED", "ended"])
def test_states_in_other_words(go, rows, word):
    said = []
    assert len(go(BatchServer([Plan(ends=word)]), messages=said).traces()) == len(rows)
    assert not any("not known" in text for text in said)


def test_a_state_that_nobody_knows_is_told_and_waited_for(go, rows, monkeypatch):
    words = iter(["on_the_shelf"] * 3)
    look = BatchServer.look

    def strange(self, batch):
        return look(self, batch) | {"status": word} if (word := next(words, "")) else look(self, batch)

    monkeypatch.setattr(BatchServer, "look", strange)
    said = []
    assert len(go(BatchServer(), messages=said).traces()) == len(rows)
    assert sum("'on_the_shelf', which is not known" in text for text in said) == 1


@pytest.mark.parametrize("word", ["cancelled", "CANCELED"])
def test_a_batch_that_was_cancelled_by_hand_is_not_submitted_again(go, rows, tmp_path, word):
    """Unless that is asked for."""
    server = BatchServer([Plan("cancelled", lost=(0, 1, 2), ends=word), Plan()])
    said = []
    assert len(go(server, messages=said).traces()) == len(rows) - 3
    assert len(server.submitted) == 1 and any("cancelled at the provider: 3 requests" in text for text in said)
    assert {line["kind"] for line in failed_of(tmp_path / "traces")} == {"cancelled"}
    go(server)
    assert len(server.submitted) == 1
    assert len(go(server, "teacher.retry_failed=true").traces()) == len(rows)
    assert [len(batch) for batch in server.submitted] == [len(rows), 3]


def test_a_cancelled_batch_that_ends_the_job_is_not_submitted_again_either(go, rows):
    server = BatchServer([Plan("cancelled", lost=tuple(range(12))), Plan()])
    for _ in range(2):
        with pytest.raises(TeacherError, match="12 (x )?cancelled"):
            go(server)
    assert len(server.submitted) == 1
    assert len(go(server, "teacher.retry_failed=true").traces()) == len(rows)


def test_a_line_that_is_refused_is_one_request(go, rows, tmp_path, monkeypatch):
    """Whatever its status: the batch was taken."""
    from tests.endpoint import fake_batches

    for number, (status, message) in enumerate([(403, "flagged"), (404, "gone"), (401, "no")]):
        monkeypatch.setattr(fake_batches, "REFUSED", {"message": message, "code": str(status)})
        end = fake_batches.BatchServer._end

        def ended(self, batch, plan, end=end, status=status):
            end(self, batch, plan)
            if name := batch.get("error_file_id"):
                self.files[name] = self.files[name].replace(b'"status_code": 400', b'"status_code": %d' % status)

        monkeypatch.setattr(fake_batches.BatchServer, "_end", ended)
        store = go(BatchServer([Plan(refused=(2,))]), folder=f"traces{number}")
        assert len(store.traces()) == len(rows) - 1
        monkeypatch.setattr(fake_batches.BatchServer, "_end", end)


def test_answers_of_a_batch_that_cannot_be_read_are_in_the_ledger(go, tmp_path, monkeypatch):
    monkeypatch.setattr(BatchServer, "_answer", staticmethod(lambda body: {"choices": []}))
    with pytest.raises(TeacherError, match="replies failed"):
        go(BatchServer(), PRICES, "teacher.malformed_tries=2")
    spent = sum(entry["cost"] for entry in journal_of(tmp_path / "traces"))
    assert spent > 2 * 12 * 0.008  # at their worst, both times


def test_the_budget_counts_what_is_under_way(go, rows):
    """A request may cost about 0.04; an answer costs 0.015."""
    server = BatchServer()
    with pytest.raises(BudgetError, match="may cost"):
        go(server, PRICES, "teacher.max_cost=0.15")
    sent = sum(map(len, server.submitted))
    assert 0 < sent < len(rows) and asked_once(server)
    store = go(server, PRICES, "teacher.max_cost=3")
    assert len(store.traces()) == len(rows) and asked_once(server)


# ---- stopped and killed ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a kill: nothing that follows is done."""


def test_a_batch_is_paid_for_whoever_takes_it_first(go, rows):
    """A recipe with fewer rows takes its own from a batch that is at the provider, and leaves the others there."""
    server = BatchServer([Plan(looks=2)])
    with pytest.raises(Stopped):
        go(server, stop_asked=lambda: bool(server.batches))
    few = go(server, only=rows[3:8])
    assert {trace.row_id for trace in few.traces()} == {row.id for row in rows[3:8]}
    store = go(server)
    assert [trace.row_id for trace in store.traces()] == [trace.row_id for trace in go(server).traces()]
    assert {trace.row_id for trace in store.traces()} == {row.id for row in rows}
    assert [len(batch) for batch in server.submitted] == [len(rows)]


def test_a_stop_leaves_batches_at_the_provider(go, rows):
    server = BatchServer([Plan(looks=10**6)])
    with pytest.raises(Stopped, match="go on at the provider"):
        go(server, stop_asked=lambda: bool(server.batches))
    server.plans = [Plan(looks=0)]
    store = go(server)
    assert len(store.traces()) == len(rows) and len(server.submitted) == 1


def killed(go, server, monkeypatch, dying):
    """One sitting, with `dying` in place of `Journal.append`, that is killed there."""
    with monkeypatch.context() as patch:
        patch.setattr(journals.ReplyLog, "append", dying)
        with pytest.raises(Killed):
            go(server)


@pytest.mark.parametrize("moment", ["requests", "file", "id", "done"])
@pytest.mark.parametrize("written", [True, False])
def test_a_kill_at_any_step_submits_nothing_twice(go, rows, tmp_path, monkeypatch, moment, written):
    """Before or after each line of the book; the job then runs again."""
    append, server = journals.ReplyLog.append, BatchServer()

    def dying(self, entry):
        if self.path.name == "batches.jsonl" and moment in entry:
            if written:
                append(self, entry)
            raise Killed
        append(self, entry)

    killed(go, server, monkeypatch, dying)
    store = go(server)
    assert len(store.traces()) == len(rows) and len(server.submitted) == 1 and asked_once(server)
    assert files_but_book(tmp_path / "traces") == files_but_book_of_one_sitting(go, tmp_path)


def files_but_book_of_one_sitting(go, tmp_path):
    go(BatchServer(), folder="whole")
    return files_but_book(tmp_path / "whole")


def test_a_kill_among_results_asks_for_none_again(go, rows, monkeypatch):
    append, server, count = journals.ReplyLog.append, BatchServer(), []

    def dying(self, entry):
        if self.path.name == "journal.jsonl":
            count.append(entry)
            if len(count) == 5:
                raise Killed
        append(self, entry)

    killed(go, server, monkeypatch, dying)
    store = go(server)
    assert len(store.traces()) == len(rows) and len(server.submitted) == 1


def test_an_answer_that_is_lost_creates_no_second_batch(go, rows):
    server = BatchServer(drop_answers=1)
    assert len(go(server).traces()) == len(rows) and len(server.submitted) == 1


def test_no_key_is_written(go, tmp_path):
    go(BatchServer())
    for file in (tmp_path / "traces").iterdir():
        assert KEY.encode() not in file.read_bytes()
    first = json.loads((tmp_path / "traces" / "batches.jsonl").read_text().splitlines()[0])
    assert first["entry"]["requests"]
