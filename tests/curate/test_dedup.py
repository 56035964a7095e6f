"""What replies share: near duplicates against exact similarity, contamination against brute force."""

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.curate.dedup import band_width
from limbeck.curate.ngrams import words
from limbeck.errors import DataError
from tests.curate.test_rules import candidate, kept, rule, run

# ---- exact -----------------------------------------------------------------------------------------------------------


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


def test_signs_and_powers_are_no_duplicates():
    assert kept([rule("exact_duplicates", by="reply")], ["2+3", "2-3", "x²", "x2", "", " "]) == [True] * 5 + [False]


# ---- near ------------------------------------------------------------------------------------------------------------


def shingles(text: str, n: int = 3) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[at : at + n]) for at in range(max(len(found) - n + 1, 1))}


def alike(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def families(count: int, seed: int, length: int = 150) -> list[str]:
    """Texts in families: each is one before it with some of its words changed."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and draw.random() < 0.6:
            found = draw.choice(texts).split()
            for _ in range(draw.choice([0, 1, 1, 2, 4, 8])):
                found[draw.randrange(len(found))] = f"new{draw.randrange(10**6)}"
        else:
            found = [f"w{draw.randrange(4000)}" for _ in range(draw.randrange(length // 2, length))]
        texts.append(" ".join(found))
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_near_duplicates_against_exact_similarity(threshold):
    """No reply is left out that is not as much like one that stays; few stay that are."""
    pytest.importorskip("datasketch")
    texts = families(500, seed=3)
    made = [candidate(n, text) for n, text in enumerate(texts)]
    found = run([rule("near_duplicates", threshold=threshold)], made)
    stays = [shingles(one.reply) for one in found.kept]
    gone = [shingles(one.candidate.reply) for one in found.rejected]
    assert len(stays) > 100 and len(gone) > 50
    assert all(max(alike(one, other) for other in stays) >= threshold for one in gone)
    missed = sum(alike(one, other) >= threshold for at, one in enumerate(stays) for other in stays[:at])
    assert missed <= 0.01 * len(gone)


@given(st.floats(0.3, 0.97), st.integers(16, 256))
def test_bands_overlook_few(threshold, permutations):
    wide = band_width(threshold, permutations)
    assert 1 <= wide <= permutations
    assert wide == 1 or (1 - threshold**wide) ** (permutations // wide) <= 0.005


@pytest.mark.parametrize(("prefer", "left"), [("first", "1"), ("shortest", "0"), ("longest", "2")])
def test_which_of_them_stays(prefer, left):
    pytest.importorskip("datasketch")
    base = [f"w{n}" for n in range(62)]
    texts = [" ".join(base[: 60 + n]) for n in (0, 1, 2)]
    made = [candidate(n, texts[n]) for n in (1, 0, 2)]
    found = run([rule("near_duplicates", prefer=prefer)], made)
    assert [one.id[-1] for one in found.kept] == [left]
    assert all("much like another: 0." in gone.reason for gone in found.rejected)
    assert found.steps[0].reasons == {"a reply much like another": 2}


def test_replies_to_a_template_hide_no_duplicate():
    """Hundreds of them are somewhat alike, more than are compared one by one."""
    pytest.importorskip("datasketch")
    texts = [" ".join([*(f"t{at}" for at in range(82)), *(f"x{n}y{at}" for at in range(18))]) for n in range(300)]
    texts += [text.replace("t0 ", "other ") for text in texts[:20]]
    assert 0.6 < alike(shingles(texts[0]), shingles(texts[1])) < 0.75
    assert kept([rule("near_duplicates")], texts) == [True] * 300 + [False] * 20


def test_near_duplicates_without_spaces_between_words():
    pytest.importorskip("datasketch")
    text = "首先我们把方程的两边都乘以三然后再减去五最后除以七这样就得到了答案"
    other = "敏捷的棕色狐狸跳过了懒狗然后跑进了森林深处并且再也没有回来过因为那里有很多食物"
    assert kept([rule("near_duplicates")], [text, f"{text}。", f"{text}吗", other]) == [True, False, False, True]


def test_near_duplicate_prompts_keep_all_their_replies():
    pytest.importorskip("datasketch")
    prompt = " ".join(f"w{n}" for n in range(40))
    made = [candidate(n, f"r{n}", f"{prompt}{'!' * (n // 2)}", row_id=f"row {n // 2}") for n in range(6)]
    found = run([rule("near_duplicates", by="prompt")], made)
    assert [one.id[-1] for one in found.kept] == ["0", "1"]


def test_texts_of_few_words():
    pytest.importorskip("datasketch")
    assert kept([rule("near_duplicates")], ["yes", "no", "Yes!", "", "...", "!!!"]) == [
        True, True, False, True, True, True,
    ]  # fmt: skip


@given(st.permutations(range(20)))
def test_shortest_does_not_depend_on_the_order(order):
    pytest.importorskip("datasketch")
    made = [candidate(n, text) for n, text in enumerate(families(20, seed=1))]
    chosen = [rule("near_duplicates", prefer="shortest", threshold=0.6, permutations=32)]
    again = [made[n] for n in order]
    assert {one.id for one in run(chosen, made).kept} == {one.id for one in run(chosen, again).kept}


# ---- contamination ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=25), st.lists(st.lists(st.integers(0, 3), max_size=25), max_size=3))
def test_decontamination_against_brute_force(reply, held_out):
    n, text = 4, " ".join(map(str, reply))
    forbidden = {tuple(map(str, words[at : at + n])) for words in held_out for at in range(len(words) - n + 1)}
    shares = any(tuple(text.split()[at : at + n]) in forbidden for at in range(len(reply) - n + 1))
    known = [candidate(99, " ".join(map(str, words)), "-") for words in held_out]
    found = run([rule("decontaminate", n=n)], [candidate(0, text, prompt="?")], held_out=known)
    assert bool(found.kept) is not shares


def test_decontamination_against_files(tmp_path):
    lines = tmp_path / "test.jsonl"
    lines.write_text('\ufeff{"q": "One two, THREE four!", "n": [{"a": "five six seven eight"}]}\n\n', encoding="utf-8")
    plain = tmp_path / "test.txt"
    plain.write_text("nine ten eleven twelve\n")
    rules = [rule("decontaminate", n=4, held_out=False, paths=[str(lines), str(plain)])]
    replies = ["so one two three four.", "five six seven eight", "nine ten eleven twelve", "one two three five"]
    assert kept(rules, replies) == [False, False, False, True]
    gone = run(rules, [candidate(0, replies[0])]).rejected[0]
    assert gone.reason.endswith(f': "one two three four" ({lines}:1)')
    lines.write_text("{no json}\n")
    with pytest.raises(DataError, match=r"test\.jsonl:1 is not JSON"):
        kept(rules, ["a"])
    with pytest.raises(DataError, match="there is no file"):
        kept([rule("decontaminate", paths=["nowhere.txt"])], ["a"])


def test_thirteen_characters_of_chinese():
    known = [candidate(9, "答案是三", "小明有五个苹果他吃了两个还剩几个苹果呢")]
    replies = ["题目说小明有五个苹果他吃了两个还剩几个", "小明有五个苹果"]
    assert kept([rule("decontaminate")], replies[:1]) == [True]
    made = [candidate(n, reply) for n, reply in enumerate(replies)]
    assert [one.id[-1] for one in run([rule("decontaminate")], made, held_out=known).kept] == ["1"]


def test_short_problems_are_compared_as_a_whole():
    known = [candidate(9, "13", "What is 5 + 8?")]
    made = [
        candidate(0, "13", "what is 5+8"),
        candidate(1, "-3", "What is 5 - 8?"),
        candidate(2, "What is 5 + 8? 13", "Add five and eight"),
    ]
    found = run([rule("decontaminate")], made, held_out=known)
    assert [gone.candidate.id[-1] for gone in found.rejected] == ["0"]
    assert found.rejected[0].reason == "its prompt is one of what is evaluated on: held-out row row 9"


def test_a_template_is_no_leak():
    """What all prompts begin with stands in held-out ones too."""
    template = "Solve the problem below, think step by step, and put your final answer in a box at the end:"
    leak = "a train leaves the town at noon and another one leaves the city an hour later at twice the speed"
    made = [candidate(n, f"r{n}", f"{template} problem {n}") for n in range(20)]
    made.append(candidate(20, "r", f"{template} {leak}"))
    known = [candidate(99, "r", f"{template} {leak}")]
    context: list[str] = []
    found = run([rule("decontaminate")], made, held_out=known, notes=context)
    assert [gone.candidate.id for gone in found.rejected] == ["id 0020"]
    assert "that more than 10 prompts share were taken for a template" in context[0]
    assert not run([rule("decontaminate", common=None)], made, held_out=known).kept


def test_one_prompts_many_replies_are_no_template():
    leak = " ".join(f"w{n}" for n in range(20))
    made = [candidate(n, leak, "p", row_id="row") for n in range(40)]
    assert not run([rule("decontaminate")], made, held_out=[candidate(99, leak, "q")]).kept


def test_lines_of_a_file_are_lines(tmp_path):
    """A separator that only Unicode knows ends no line of JSON."""
    text = "one two three\u2028four five six"
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"a": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert kept([rule("decontaminate", n=6, held_out=False, paths=[str(file)])], ["one two three four five six"]) == [
        False
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "txt"])
def test_test_sets_of_every_kind_are_read(kind, tmp_path):
    """All their strings, inside lists and structs as well; accents written as escapes are the same letters."""
    texts = [f"caf\u00e9 {number} " + " ".join(f"word{number}x{place}" for place in range(20)) for number in range(90)]
    file = tmp_path / f"test.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"id": list(range(90)), "turns": [[{"content": text}] for text in texts]}), file)
    elif kind == "csv":
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([["id", "question"], *enumerate(texts)])
    else:
        lines = [json.dumps({"a": {"question": text}}) if kind == "jsonl" else text for text in texts]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = [candidate(number, "ok", text) for number, text in enumerate([*texts, "other words"])]
    found = run([rule("decontaminate", paths=[str(file)], held_out=False)], made)
    assert [one.row_id for one in found.kept] == ["row 90"]


@pytest.mark.parametrize("how", ["packed", "utf-16", "damaged", "nowhere"])
def test_a_test_set_that_cannot_be_read_is_an_error_and_not_an_empty_one(how, tmp_path):
    names = {"packed": "a.jsonl.gz", "utf-16": "a.txt", "damaged": "a.parquet", "nowhere": "a.csv"}
    file = tmp_path / names[how]
    if how != "nowhere":
        file.write_bytes("a question of the test set\n".encode("utf-16") if how == "utf-16" else b"\x1f\x8b PAR1")
    with pytest.raises(DataError, match=names[how]):
        run([rule("decontaminate", paths=[str(file)], held_out=False)], [candidate(0, "r")])
