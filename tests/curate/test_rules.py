"""Every rule on cases with known answers, and against slow and plain versions of itself."""

import csv
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from limbeck.curate.chain import curate
from limbeck.curate.filters import thinking_of
from limbeck.curate.together import Context
from limbeck.curate.verify import Verdict, verify_all
from limbeck.curation import CurateRule
from limbeck.errors import DataError
from limbeck.types import Candidate

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


def test_language():
    pytest.importorskip("py3langid")
    english = "The quick brown fox jumps over the lazy dog and runs into the deep forest."
    german = "Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald."
    chinese = "敏捷的棕色狐狸跳过了懒狗然后跑进了森林深处并且再也没有回来过因为那里有很多食物和朋友们在等着它一起玩耍"
    formula = "$1 + 2 = 3$, $4 \\cdot 5 = 20$, $\\frac{1}{2} + 7^{12} = 9$ (1) (2) (3) (4) (5)"
    replies = [english, german, f"{english}\n\n{german}", f"<think>{chinese}</think>{english}", formula]
    assert kept([rule("language", allowed=["en"])], replies) == [True, False, False, False, True]
    assert kept([rule("language", allowed=["en", "de"])], replies) == [True, True, False, False, True]
    assert kept([rule("language", allowed=["en", "de"], mixed=True)], replies) == [True, True, True, False, True]


def test_repetition():
    fresh = " ".join(map(str, range(200)))
    replies = [fresh, "again and again " * 40, f"{fresh} wait, no. wait, no. wait, no. wait, no. wait, no."]
    assert kept([rule("repetition")], replies) == [True, False, False]
    assert kept([rule("repetition", max_loops=5)], replies) == [True, False, True]


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
    assert found.steps[0].reasons == {"wrong": 1, "unknown: ": 1}


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


def test_exact_duplicates():
    made = [
        candidate(0, "A  b", "p"),
        candidate(1, "a B", "P"),
        candidate(2, "a b", "q"),
        candidate(3, "c", "p", row_id="row 0"),
    ]
    found = {by: run([rule("exact_duplicates", by=by)], made).kept for by in ("both", "prompt", "reply")}
    left = {by: [one.id[-1] for one in ones] for by, ones in found.items()}
    assert left == {"both": ["0", "2", "3"], "prompt": ["0", "2", "3"], "reply": ["0", "3"]}


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def test_near_duplicates_against_exact_similarity():
    pytest.importorskip("datasketch")
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(words)]
    for changed in (0, 1, 2, 20, 40):  # ever less alike
        texts.append(" ".join([*words[: 60 - changed], *(f"x{changed}{n}" for n in range(changed))]))
    base = shingles(texts[0], 3)
    similarity = [len(base & shingles(text, 3)) / len(base | shingles(text, 3)) for text in texts]
    assert similarity[3] > 0.9 > 0.5 > similarity[5]
    found = kept([rule("near_duplicates", threshold=0.8)], texts)
    assert found == [True, *[alike < 0.8 for alike in similarity[1:]]]


@given(st.lists(st.integers(0, 3), max_size=25), st.lists(st.lists(st.integers(0, 3), max_size=25), max_size=3))
def test_decontamination_against_brute_force(reply, held_out):
    n, text = 4, " ".join(map(str, reply))
    forbidden = {tuple(map(str, words[at : at + n])) for words in held_out for at in range(len(words) - n + 1)}
    shares = any(tuple(text.split()[at : at + n]) in forbidden for at in range(len(reply) - n + 1))
    texts = [" ".join(map(str, words)) for words in held_out]
    found = run(
        [rule("decontaminate", n=n)],
        [candidate(0, text, prompt="?")],
        held_out=[candidate(99, text, "-") for text in texts],
    )
    assert bool(found.kept) is not shares


def test_decontamination_against_files(tmp_path):
    lines = tmp_path / "test.jsonl"
    lines.write_text(json.dumps({"question": "One two, THREE four!", "n": [{"a": "five six seven eight"}]}) + "\n")
    plain = tmp_path / "test.txt"
    plain.write_text("nine ten eleven twelve\n")
    rules = [rule("decontaminate", n=4, held_out=False, paths=[str(lines), str(plain)])]
    replies = ["so one two three four.", "five six seven eight", "nine ten eleven twelve", "one two three five"]
    assert kept(rules, replies) == [False, False, False, True]
    with pytest.raises(DataError, match="there is no file"):
        kept([rule("decontaminate", paths=["nowhere.txt"])], ["a"])


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
    found = run([rule("verdicts", path=str(file))], [candidate(n, "r") for n in range(3)])
    assert [gone.reason for gone in found.rejected] == ["a human's verdict: rude"]
    file.write_text("id,verdict\nid 0001,maybe\n")
    with pytest.raises(DataError, match=r"review\.csv:2: the verdict 'maybe'"):
        run([rule("verdicts", path=str(file))], [])
    file.write_text("a,b\n")
    with pytest.raises(DataError, match="must have id and verdict"):
        run([rule("verdicts", path=str(file))], [])


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
