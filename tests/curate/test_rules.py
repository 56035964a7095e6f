"""Every rule on cases with known answers, and against slow and plain versions of itself."""

import csv
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from limbeck.curate.chain import curate
from limbeck.curate.context import Candidate, Context
from limbeck.curate.filters import _stutters, thinking_of
from limbeck.curate.verdicts import Verdict
from limbeck.curate.verifiers import verify_all
from limbeck.errors import DataError
from limbeck.recipe import CurateRule

RULE = TypeAdapter(CurateRule)


def rule(kind: str, **settings):
    return RULE.validate_python({"kind": kind, **settings})


def candidate(number: int, reply: str, prompt: str = "", **changes) -> Candidate:
    settings = {"row_id": f"row {number}", "split": "train", "topic": "", "reference": "", **changes}
    return Candidate(id=f"id {number:04}", prompt=prompt or f"prompt {number}", reply=reply, **settings)


def run(rules, candidates, **context):
    return curate(candidates, rules, Context(context.pop("verify", verify_all), **context))


def kept(rules, replies, **changes) -> list[bool]:
    """Which of the replies (to prompts of their own) are kept."""
    made = [candidate(number, reply, **changes) for number, reply in enumerate(replies)]
    left = {one.id for one in run(rules, made).kept}
    return [one.id in left for one in made]


# ---- one reply -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "thinking"),
    [("<think>a</think>b", "a"), ("a</think>b", "a"), ("<think>a", "a"), ("a", ""), ("<think></think>b", "")],
)
def test_thinking(reply, thinking):
    assert thinking_of(reply) == thinking


def test_think():
    replies = ["<think>a</think>b", "a</think>b", "a", "<think>a", "<think>a</think> ", "<think></think>b"]
    replies += ["<think>a</think><think>b</think>c", "x<think>a</think>b"]
    assert kept([rule("think")], replies) == [True, True, False, False, False, False, False, False]


def test_finish():
    made = [candidate(n, "a", finish_reason=why) for n, why in enumerate(["stop", "length", "content_filter"])]
    assert [one.finish_reason for one in run([rule("finish")], made).kept] == ["stop"]


def test_length():
    assert kept([rule("length", min=2, max=3)], ["a", "ab", "abc", "abcd", "日本", "日"]) == [
        False, True, True, False, True, False,
    ]  # fmt: skip
    assert kept([rule("length", of="thinking", max=1)], ["<think>aa</think>b", "<think>a</think>bbb"]) == [False, True]
    assert kept([rule("length", of="answer", max=1)], ["<think>aa</think>b", "<think>a</think>bbb"]) == [True, False]
    made = [candidate(n, "a", num_tokens=n) for n in range(4)]
    assert len(run([rule("length", unit="tokens", max=2)], made).kept) == 3


def test_code_in_thinking():
    replies = ["<think>```x```</think>a", "<think>x</think>```a```", "```a```"]
    assert kept([rule("code_in_thinking")], replies) == [False, True, True]


def test_paragraphs():
    assert kept([rule("paragraphs", max=5)], ["12345\n\n12345", "123456", "123\n456\n \n1"]) == [True, False, False]


ENGLISH = "The quick brown fox jumps over the lazy dog and runs into the deep forest."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald."
CHINESE = "敏捷的棕色狐狸跳过了懒狗然后跑进了森林深处并且再也没有回来过"
FORMULA = "$1 + 2 = 3$, $4 \\cdot 5 = 20$, $\\frac{1}{2} + 7^{12} = 9$ (1) (2) (3) (4) (5)"


def test_language():
    pytest.importorskip("py3langid")
    replies = [ENGLISH, GERMAN, f"{ENGLISH}\n\n{GERMAN}", f"<think>{CHINESE}</think>{ENGLISH}", FORMULA]
    assert kept([rule("language", allowed=["en"])], replies) == [True, False, False, False, True]
    assert kept([rule("language", allowed=["en", "de"])], replies) == [True, True, False, False, True]
    assert kept([rule("language", allowed=["en", "de"], mixed=True)], replies) == [True, True, True, False, True]
    gone = run([rule("language", allowed=["en"])], [candidate(0, GERMAN)])
    assert gone.rejected[0].reason.startswith("a paragraph in de: Der schnelle")
    assert gone.steps[0].reasons == {"a paragraph in de": 1}


def test_another_script_within_a_paragraph():
    """The language mixing that DeepSeek-R1-Zero was known for: no paragraph of its own."""
    pytest.importorskip("py3langid")
    replies = [
        f"{ENGLISH} 所以答案是三。 {ENGLISH}",
        f"{ENGLISH} The angle is α + β, the sum Σ, and naïve café words stay.",  # noqa: RUF001
        f"{ENGLISH * 6} She said 好.",  # a quotation
        f"{ENGLISH} Поэтому ответ три. {ENGLISH}",
    ]
    assert kept([rule("language", allowed=["en"])], replies) == [False, True, True, False]
    assert kept([rule("language", allowed=["en"], max_foreign=0.0)], replies) == [False, True, False, False]
    assert kept([rule("language", allowed=["zh"])], [CHINESE, f"{CHINESE} GPT x+y", "これはペンです"]) == [
        True, True, False,
    ]  # fmt: skip
    gone = run([rule("language", allowed=["en"])], [candidate(0, replies[0])])
    assert gone.rejected[0].reason == "letters of another script: Han"


def test_code_and_doubtful_paragraphs_are_of_no_language():
    pytest.importorskip("py3langid")
    code = "```python\ndef zaehle_woerter(satz):\n    # Der Satz wird in einzelne Woerter zerlegt\n    return satz\n```"
    doubtful = "so x = 3, thus y = 4 and hence z = 5 by Pythagoras"
    assert kept([rule("language", allowed=["en"])], [f"{ENGLISH}\n\n{code}", doubtful]) == [True, True]
    assert kept([rule("language", allowed=["de"])], [doubtful]) == [True]
    assert kept([rule("language", allowed=["de"], min_confidence=0.0)], [doubtful]) == [False]


def test_repetition():
    fresh = " ".join(map(str, range(200)))
    replies = [fresh, "again and again " * 40, f"{fresh} wait, no. wait, no. wait, no. wait, no. wait, no."]
    assert kept([rule("repetition")], replies) == [True, False, False]
    assert kept([rule("repetition", max_loops=5)], replies) == [True, False, True]


def test_repetition_in_every_script_and_cut_off_anywhere():
    fresh = " ".join(map(str, range(200)))
    chinese = "".join(chr(0x4E00 + 7 * n) for n in range(200))
    replies = [
        chinese,
        chinese + "等等不对" * 6,
        f"{fresh} {'!' * 200}",
        f"{fresh} {'I will now go on. ' * 9}I will n",
        f"{fresh} {'abcdefghij' * 30}abc",
        f"{fresh} 1{'0' * 60}",
        f"{fresh}\n{'-' * 80}",
        f"{fresh}\n|---|---|---|---|---|---|",
        "",
        "a",
        "same same",
    ]
    assert kept([rule("repetition")], replies) == [True, *[False] * 4, *[True] * 6]


@given(st.text("ab ", max_size=20), st.text("abc", min_size=1, max_size=40), st.integers(1, 30), st.integers(0, 39))
def test_stutters_against_brute_force(head, loop, times, cut):
    text = (head + loop * times + loop[:cut]).rstrip()
    most, shortest = 4, 100
    slow = any(
        all(text[-at] == text[-at - size] for at in range(1, max(size * (most + 1), shortest) - size + 1))
        for size in range(1, len(text) // (most + 1) + 1)
        if len(text) >= max(size * (most + 1), shortest)
    )
    assert _stutters(text, most) is slow


# ---- verification ----------------------------------------------------------------------------------------------------


def said(verdicts):
    return lambda _verifier, pairs: [Verdict(verdicts[reply], "") for reply, _ in pairs]


RIGHT = {"a": True, "bb": True, "ccc": True, "x": False, "?": None}


def prompts(*replies: str) -> list[Candidate]:
    return [candidate(n, reply, row_id="row", reference="r") for n, reply in enumerate(replies)]


def test_verify_keeps_what_is_right_and_how_hard_it_was():
    context = Context(said(RIGHT))
    found = curate(prompts("a", "x", "?", "bb"), [rule("verify", verifier={"kind": "exact"})], context)
    assert [one.reply for one in found.kept] == ["a", "bb"]
    assert context.pass_rate == {"row": pytest.approx(2 / 3)}  # of those that could be judged
    assert found.steps[0].reasons == {"wrong": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("settings", "replies"),
    [
        ({"keep_unknown": True}, ["ccc", "a", "?", "bb"]),
        ({"keep_wrong": True}, ["ccc", "x", "a", "?", "bb"]),
        ({"per_prompt": 2, "pick": "shortest"}, ["a", "bb"]),
    ],
)
def test_what_verify_keeps(settings, replies):
    made = prompts("ccc", "x", "a", "?", "bb")
    found = run([rule("verify", verifier={"kind": "exact"}, **settings)], made, verify=said(RIGHT))
    assert [one.reply for one in found.kept] == replies


def test_a_random_pick_is_the_same_in_every_order():
    chosen = rule("verify", verifier={"kind": "exact"}, per_prompt=1, pick="random")
    made = prompts("a", "bb", "ccc")
    first = run([chosen], made, verify=said(RIGHT)).kept
    assert first == run([chosen], made[::-1], verify=said(RIGHT)).kept
    others = {run([chosen], made, verify=said(RIGHT), seed=seed).kept[0].reply for seed in range(20)}
    assert len(others) > 1


def test_references_that_cannot_be_read_are_counted_apart_and_said():
    rows = [candidate(number, "5", reference=text) for number, text in enumerate(["5", "x", "(1, 2)"])]
    context = Context(verify_all)
    found = curate(rows, [rule("verify", verifier={"kind": "numeric"})], context)
    assert [one.row_id for one in found.kept] == ["row 0"] and found.steps[0].reasons == {"unknown": 2}
    assert "2 rows have a reference that the verifier cannot read" in context.notes[0] and "'x'" in context.notes[0]
    assert context.pass_rate == {"row 0": 1.0}


def test_verify_needs_references():
    with pytest.raises(DataError, match="has no reference"):
        run([rule("verify", verifier={"kind": "exact"})], [candidate(0, "a")])


def test_pass_rate():
    made = [candidate(n, "a", row_id=f"row {n // 2}", reference="r") for n in range(6)]
    verdicts = iter([True, True, True, False, False, False])
    rules = [rule("verify", verifier={"kind": "exact"}, keep_wrong=True), rule("pass_rate", min=0.1, max=0.9)]
    found = run(rules, made, verify=lambda _v, pairs: [Verdict(next(verdicts), "") for _ in pairs])
    assert [one.id for one in found.kept] == ["id 0002", "id 0003"]


# ---- together --------------------------------------------------------------------------------------------------------


TOPICS = st.lists(st.sampled_from("abc"), min_size=1, max_size=40)


@given(TOPICS, st.integers(1, 30), st.integers(1, 20))
def test_quotas_are_exact(topics, total, per_topic):
    made = [candidate(n, "r", topic=topic) for n, topic in enumerate(topics)]
    found = run([rule("quota", total=total, per_topic=per_topic)], made).kept
    sizes = {topic: topics.count(topic) for topic in set(topics)}
    assert len(found) == min(total, sum(min(size, per_topic) for size in sizes.values()))
    counts = [sum(one.topic == topic for one in found) for topic in sizes]
    assert all(count <= per_topic for count in counts)
    # Nobody has more than another that could have had more.
    hungry = [count for topic, count in zip(sizes, counts, strict=True) if count < min(sizes[topic], per_topic)]
    assert not hungry or max(counts) - min(hungry) <= 1


def test_quotas_by_weight():
    made = [candidate(n, "r", topic="abb"[n % 3]) for n in range(300)]
    found = run([rule("quota", total=40, weights={"a": 3.0})], made).kept
    assert [sum(one.topic == topic for one in found) for topic in "ab"] == [30, 10]


@given(st.permutations(range(12)))
def test_quotas_do_not_depend_on_the_order(order):
    made = [candidate(n, "r", topic="ab"[n % 2]) for n in range(12)]
    chosen = [rule("quota", total=5)]
    assert {one.id for one in run(chosen, made).kept} == {one.id for one in run(chosen, [made[n] for n in order]).kept}


def test_a_humans_verdicts(tmp_path):
    file = tmp_path / "review.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([("verdict", "id", "note"), ("reject", "id 0001", "rude"), ("", "id 0002", "")])
    chosen, made = rule("verdicts", path=str(file)), [candidate(n, "r") for n in range(3)]
    assert [gone.reason for gone in run([chosen], made).rejected] == ["a human's verdict: rude"]
    file.write_text("id,verdict\nid 0001,maybe\n")
    with pytest.raises(DataError, match=r"review\.csv:2: the verdict 'maybe'"):
        run([chosen], made)
    file.write_text("a,b\n")
    with pytest.raises(DataError, match="must have id and verdict"):
        run([chosen], made)
    file.write_bytes("id,verdict,note\nid 0001,reject,über\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        run([chosen], made)
    file.write_text("id,verdict\nid 0009,reject\n")
    with pytest.raises(DataError, match="none of the 1 ids .* is of this run, such as 'id 0009'"):
        run([chosen], made)


@pytest.mark.parametrize("cell", [",", ";", "\t"])
def test_verdicts_as_spreadsheets_write_them(tmp_path, cell):
    file = tmp_path / "review.csv"
    lines = [("verdict", "note", "id"), ("Reject ", "a\nb", "id 0001"), ("keep", "", "id 0000"), ("reject", "", "x")]
    with file.open("w", newline="", encoding="utf-8-sig") as table:
        csv.writer(table, delimiter=cell).writerows(lines)
    notes: list[str] = []
    found = run([rule("verdicts", path=str(file))], [candidate(n, "r") for n in range(3)], notes=notes)
    assert [gone.candidate.id for gone in found.rejected] == ["id 0001"]
    assert notes == ["verdicts: 1 of 3 are on replies that this run does not have."]


def test_what_a_human_keeps_passes_later_rules(tmp_path):
    file = tmp_path / "review.csv"
    file.write_text("id,verdict\nid 0001,keep\n")
    found = run([rule("verdicts", path=str(file)), rule("length", min=9)], [candidate(n, "r") for n in range(3)])
    assert [one.id for one in found.kept] == ["id 0001"] and found.steps[1].kept == 1


# ---- the chain -------------------------------------------------------------------------------------------------------


def test_rules_apply_in_order_and_to_their_topics():
    made = [candidate(n, "a" * n, topic="xy"[n % 2]) for n in range(8)]
    found = run([rule("length", max=3, topics=["x"]), rule("length", min=2)], made)
    assert [one.id[-1] for one in found.kept] == ["2", "3", "5", "7"]
    assert [(step.came, step.kept) for step in found.steps] == [(8, 6), (6, 4)]
    assert [(gone.number, gone.candidate.id[-1]) for gone in found.rejected] == [(1, "4"), (1, "6"), (2, "0"), (2, "1")]


@given(st.lists(st.text("ab <>think/", max_size=30), max_size=12))
def test_nothing_is_lost_and_nothing_is_invented(replies):
    rules = [rule("think"), rule("length", max=20), rule("exact_duplicates"), rule("quota", per_topic=3)]
    found = run(rules, [candidate(n, reply) for n, reply in enumerate(replies)])
    ids = [one.id for one in found.kept] + [gone.candidate.id for gone in found.rejected]
    assert sorted(ids) == sorted(candidate(n, "").id for n in range(len(replies)))
    counts = [len(replies), *(step.kept for step in found.steps)]
    assert all(came == step.came for came, step in zip(counts, found.steps, strict=False))
    assert all(before >= after for before, after in pairwise(counts))


def test_a_topic_that_no_reply_has():
    made = [candidate(n, "r", topic=topic) for n, topic in enumerate(["maths", "logic"])]
    with pytest.raises(DataError, match=r"rule 2 \(length\) names the topic 'math', .* 'maths'\. Did you mean maths\?"):
        run([rule("finish"), rule("length", min=1, topics=["math"])], made)
    with pytest.raises(DataError, match="names the topic 'x'"):
        run([rule("quota", total=1, weights={"x": 2.0})], made)
    assert run([rule("length", min=1, topics=["maths"])], []).kept == []


@given(st.permutations(range(14)))
def test_the_order_of_replies_changes_nothing_but_which_comes_first(order):
    """Rules on single replies, and quotas, are the same in every order; duplicates leave as many."""
    made = [candidate(n, "ab"[n % 2] * (n // 2), topic="xy"[n % 2]) for n in range(14)]
    rules = [rule("length", min=1, max=5), rule("quota", per_topic=3)]
    again = [made[n] for n in order]
    assert {one.id for one in run(rules, made).kept} == {one.id for one in run(rules, again).kept}
    found = [run([rule("exact_duplicates", by="reply")], ones).steps for ones in (made, again)]
    assert found[0] == found[1]
