"""What becomes of replies that were paid for, in whatever words they come; and of prompts that are refused."""

import json

import pytest

from limbeck.endpoint import rate_limit
from limbeck.errors import BudgetError, TeacherError
from limbeck.recipe import Recipe
from limbeck.store.reply_log import ReplyLog
from limbeck.types import Callbacks
from tests.endpoint.fake_answers import answer_of, as_json, error
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY, ask, failed_of, journal_of, recipe_of, rows_of
from tests.label.test_remote import number_of

PRICES = "teacher.prices={input: 0.0, output: 1000.0}"
ALL = "teacher.max_failed=1"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rate_limit, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return rows_of(tiny_tokenizer)


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


@pytest.fixture
def go(server, rows, tiny_tokenizer, tmp_path):
    def run(*overrides, path=tmp_path / "traces", only=rows, **watch):
        return ask(recipe_of(server.url, *overrides), path, tiny_tokenizer, only, **watch)

    return run


def says(server, change, when=lambda seen: True):
    """Every answer is changed in place before it is sent."""

    def script(seen):
        if not when(seen):
            return None
        answer = answer_of(seen)
        change(answer, answer["choices"][0])
        return as_json(answer)

    server.script = script


def asked(tmp_path):
    return json.loads((tmp_path / "traces" / "asked.json").read_text())


# ---- replies that cannot be used -------------------------------------------------------------------------------------


EMPTY = {
    "empty": lambda answer, choice: choice["message"].update(content=""),
    "null": lambda answer, choice: choice["message"].update(content=None),
    "no content": lambda answer, choice: choice["message"].pop("content"),
    "no parts": lambda answer, choice: choice["message"].update(content=[]),
    "thought alone": lambda answer, choice: choice["message"].update(content=None, reasoning_content="hm"),
    "a control token": lambda answer, choice: choice["message"].update(content="a wren<|im_end|>"),
    "a refusal": lambda answer, choice: choice["message"].update(content=None, refusal="I will not"),
    "a call": lambda answer, choice: choice["message"].update(tool_calls=[{"id": "c", "function": {"name": "f"}}]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_replies_that_cannot_be_used_end_the_job_early_and_with_their_reason(go, server, tmp_path, kind):
    says(server, EMPTY[kind])
    with pytest.raises(TeacherError, match=r"of 20 replies failed \(20 unusable\).*failed\.jsonl"):
        go("teacher.concurrency=1")
    assert set(server.counts.values()) == {1}  # a reply of no use is not asked for, and paid, a second time
    facts = asked(tmp_path)
    assert facts["failed"] == {"unusable": 20} and sum(facts["unusable"].values()) == 20
    with pytest.raises(TeacherError, match="replies failed"):  # a later sitting knows
        go()


def test_a_label_stage_that_leaves_nothing_to_learn_says_so_itself(go, server, tmp_path):
    says(server, EMPTY["empty"])
    with pytest.raises(TeacherError, match=r"not one reply.*40 x unusable: .*the reply is empty.*failed\.jsonl"):
        go(ALL)
    assert len(failed_of(tmp_path / "traces")) == 40


def test_half_of_them_empty_counts_as_half(go, server, tmp_path):
    says(server, EMPTY["empty"], lambda seen: number_of(seen) % 2 == 0)
    with pytest.raises(TeacherError, match="unusable"):
        go("teacher.max_failed=0.4")
    assert len(go("teacher.max_failed=0.6").traces()) == 20
    facts = asked(tmp_path)
    assert facts["answered"] == 40 and facts["failed"] == {"unusable": 20}


def test_the_few_that_are_missing_are_told_at_the_end(go, server):
    says(server, EMPTY["empty"], lambda seen: number_of(seen) == 3)
    messages = []
    assert len(go(messages=messages).traces()) == 39
    assert len(messages) == 1 and "1 replies are missing (1 x unusable: the reply is empty" in messages[0]


def test_unusable_replies_are_asked_once_more_when_that_is_wished(go, server, rows, tmp_path):
    says(server, EMPTY["empty"], lambda seen: number_of(seen) < 5)
    assert len(go("teacher.max_failed=0.3").traces()) == 35
    server.script = lambda seen: None
    assert len(go("teacher.retry_failed=true").traces()) == 40
    assert server.counts.total() == 45 and not failed_of(tmp_path / "traces")
    facts = asked(tmp_path)
    assert (facts["answered"], facts["failed"], facts["unusable"]) == (40, {}, {})


def test_what_can_be_used_after_all_is_not_paid_twice(go, server, tmp_path, monkeypatch):
    """Set aside by older rules: the replies are in the log."""
    from limbeck.label import replies

    def refuse(row, choice):
        raise replies.DataError(f"{row.source}: not understood.")

    with monkeypatch.context() as patch:
        patch.setattr(replies, "refuse_wordless", refuse)
        with pytest.raises(TeacherError, match="not one reply"):
            go(ALL)
    assert len(go("teacher.retry_failed=true").traces()) == 40
    assert set(server.counts.values()) == {1} and asked(tmp_path)["failed"] == {}
    go()
    assert asked(tmp_path)["failed"] == {}  # for good


# ---- finish reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["stop", "eos", "EOS_TOKEN", "STOP", "end_turn", "end", "FINISH_REASON_STOP", "Complete"]
)
def test_a_reply_that_ended_by_itself_has_its_end_in_any_words(go, server, rows, tiny_tokenizer, word):
    says(server, lambda answer, choice: choice.update(finish_reason=word))
    messages = []
    for trace in go(only=rows[:4], messages=messages).traces():
        assert tiny_tokenizer.decode(trace.ids).endswith("<|im_end|>") and trace.meta["finish_reason"] == "stop"
    assert not messages


@pytest.mark.parametrize("word", ["MAX_TOKENS", "length", "model_length"])
def test_a_reply_that_was_cut_off_has_none(go, server, rows, tiny_tokenizer, word):
    says(server, lambda answer, choice: choice.update(finish_reason=word))
    for trace in go(only=rows[:4]).traces():
        assert not tiny_tokenizer.decode(trace.ids).endswith("<|im_end|>") and trace.meta["finish_reason"] == "length"


@pytest.mark.parametrize("word", ["paused_for_tea", None])
def test_a_word_that_nobody_knows_is_told_once_by_its_name_and_counted(go, server, rows, tmp_path, word):
    says(server, lambda answer, choice: choice.update(finish_reason=word))
    messages = []
    go(only=rows[:6], messages=messages)
    assert len(messages) == 1 and (repr(word) if word else "no reason") in messages[0]
    assert asked(tmp_path)["finish_reasons"] == {word or "unknown": 6}
    assert set(server.counts.values()) == {1}


def test_words_of_an_older_log_are_read_anew(go, server, rows, tmp_path, tiny_tokenizer, monkeypatch):
    """The journal of an interrupted run has the endpoint's own words."""
    append = ReplyLog.append

    def older(self, entry):
        for choice in entry.get("answer", {}).get("choices", []):
            choice["finish_reason"] = "eos"
        append(self, entry)

    monkeypatch.setattr(ReplyLog, "append", older)
    for trace in go(only=rows[:3]).traces():
        assert tiny_tokenizer.decode(trace.ids).endswith("<|im_end|>")


# ---- prompts that are refused ----------------------------------------------------------------------------------------


FLAGGED = {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}
REFUSALS = {
    "moderation 403": (403, json.dumps({"error": FLAGGED}).encode()),
    "moderation 451": (451, json.dumps({"error": {"message": "blocked by content policy"}}).encode()),
    "filter 400": (400, error("The response was filtered", "content_filter")),
    "a firewall": (403, b"<html><h1>Forbidden</h1></html>"),
    "Gemini": (400, json.dumps([{"error": {"code": 400, "message": "unsafe", "status": "INVALID_ARGUMENT"}}]).encode()),
    "hidden": (200, json.dumps({"error": FLAGGED}).encode()),
    "MiniMax": (200, json.dumps({"base_resp": {"status_code": 1026, "status_msg": "input sensitive"}}).encode()),
}


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_one_prompt_that_is_refused_fails_alone_and_counts(go, server, tmp_path, kind, concurrency):
    status, body = REFUSALS[kind]
    prompts = {0, 7, 8, 9}  # the first one, and several in a row

    def script(seen):
        refused = seen.said.startswith("name bird") and number_of(seen) in prompts
        return as_json(body, f"{status} X") if refused else None

    server.script = script
    store = go(f"teacher.concurrency={concurrency}", "teacher.max_failed=0.25")
    assert len(store.traces()) == 36
    assert {line["source"] for line in failed_of(tmp_path / "traces")} == {f"birds.jsonl:{n}" for n in prompts}
    assert sum(asked(tmp_path)["failed"].values()) == 4


def test_a_refusal_of_everything_ends_the_job_and_sets_nothing_aside(go, server, tmp_path):
    server.script = lambda seen: "403"
    with pytest.raises(TeacherError, match="refuses every request.*not your model"):
        go()
    assert not any("failed" in entry for entry in journal_of(tmp_path / "traces"))


# ---- costs -----------------------------------------------------------------------------------------------------------


THINKING = {"completion_tokens_details": {"reasoning_tokens": 2000}}
USAGES = {  # what is billed of a reply, in tokens, of the 8 that are allowed
    "in the total": ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 2015} | THINKING, 2005),
    "in details alone": ({"prompt_tokens": 10, "completion_tokens": 5} | THINKING, 2005),
    "inside": ({"prompt_tokens": 10, "completion_tokens": 2005, "total_tokens": 2015} | THINKING, 2005),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, 8),
    "nothing": (None, 8),
    "floats": ({"prompt_tokens": 10.0, "completion_tokens": 5.0}, 5),
    "no reply": ({"prompt_tokens": 10, "completion_tokens": None, "total_tokens": 25}, 15),
}


@pytest.mark.parametrize("kind", USAGES)
def test_every_reply_is_charged_what_may_be_billed(go, server, rows, tmp_path, kind):
    usage, tokens = USAGES[kind]
    says(server, lambda answer, choice: answer.update(usage=usage))
    go(PRICES, only=rows[:5])
    assert asked(tmp_path)["cost"] == pytest.approx(5 * tokens / 1000)


def test_max_cost_holds_where_reasoning_is_billed_beside_the_reply(go, server, tmp_path):
    """A reply is thought to cost 0.008 and costs 2.005: no second one is sent."""
    says(server, lambda answer, choice: answer.update(usage=USAGES["in the total"][0]))
    with pytest.raises(BudgetError, match="may cost 2"):
        go(PRICES, "teacher.max_cost=7")
    assert server.counts.total() == 3 and asked(tmp_path)["cost"] == pytest.approx(3 * 2.005)


def test_another_schema_is_another_store_and_the_same_replies(server, tiny_tokenizer, rows, tmp_path):
    """What judges replies was replaced: shards are made anew, nothing is paid twice, and both stores are kept."""
    from limbeck.label.stage import LabelJob, store_targets

    recipe: Recipe = recipe_of(server.url, PRICES, "trace.mode.n=2")
    told: list[str] = []
    watch = Callbacks(lambda progress: None, told.append, lambda: False)
    asked_for = []
    for digest in ("a", "b", "a"):
        job = LabelJob(tmp_path / "traces", rows[:4], {"schema.json": digest})
        store_targets(recipe, job, teacher=None, tokenizer=tiny_tokenizer, callbacks=watch)
        asked_for.append(server.counts.total())
    assert asked_for[0] == asked_for[1] == asked_for[2] > 0
    assert len(list(tmp_path.glob("traces-*"))) == 1 and any("taken up again" in message for message in told)


def test_what_the_probe_asked_is_in_the_ledger_once(server, tiny_tokenizer, rows, tmp_path):
    from limbeck.label.stage import LabelJob, store_targets

    recipe: Recipe = recipe_of(server.url, PRICES, "trace.mode.n=2")
    watch = Callbacks(lambda progress: None, lambda message: None, lambda: False)
    for _ in range(2):
        job = LabelJob(tmp_path / "traces", rows[:4], {})
        store_targets(recipe, job, teacher=None, tokenizer=tiny_tokenizer, callbacks=watch)
    entries = [entry for entry in journal_of(tmp_path / "traces") if "probe" in entry]
    assert len(entries) == 1 and entries[0]["attempts"] > 5 and entries[0]["cost"] > 0
    replies = sum(entry["cost"] for entry in journal_of(tmp_path / "traces") if entry["keys"])
    assert asked(tmp_path)["cost"] == pytest.approx(replies + entries[0]["cost"], abs=1e-6)
