"""Curation's rules on replies like a reasoning teacher's: replies a second of each rule, and memory of the index.

    python benchmarks/curate.py [--replies 20000]

Replies are made of a seeded vocabulary with Zipf's frequencies: a tenth are near copies, some loop, some are partly in
Chinese, some hold a part of a held-out text. Each rule sees all of them, alone; then the whole list, in order; then
near duplicates among replies to a template, which are all alike to 0.7: the worst case.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc

import numpy as np
from pydantic import TypeAdapter

from limbeck.curate.chain import curate
from limbeck.curate.context import Candidate, Context
from limbeck.curate.verifiers import verify_all
from limbeck.recipe import CurateRule

RULES: list[dict] = [
    {"kind": "verify", "verifier": {"kind": "numeric"}, "keep_wrong": True},
    {"kind": "finish"},
    {"kind": "think"},
    {"kind": "length", "of": "thinking", "max": 20000},
    {"kind": "paragraphs"},
    {"kind": "code_in_thinking"},
    {"kind": "repetition"},
    {"kind": "language", "allowed": ["en"]},
    {"kind": "exact_duplicates"},
    {"kind": "near_duplicates"},
    {"kind": "decontaminate"},
    {"kind": "quota", "total": 10000, "weights": {"maths": 3.0}},
]
COMMON = "the of and to in is that we it for as so then if this with be are on by can not"
PARTS = "ing er tion al re con pro ment ate est in de pre sub form struct port ten press graph log ic ous ly"
TOPICS = ("maths", "logic", "code")
HELD_OUT = 1000


def english(size: int, draw: np.random.Generator) -> list[str]:
    """Made-up words of English letters and syllables, the most frequent first."""
    common, parts = COMMON.split(), PARTS.split()
    made = ["".join(draw.choice(parts, draw.integers(2, 4))) for _ in range(size)]
    return list(dict.fromkeys(common + made))


def replies(count: int, seed: int = 0) -> list[Candidate]:
    draw = np.random.default_rng(seed)
    vocabulary = np.array(english(20000, draw))
    chance = 1.0 / np.arange(1, len(vocabulary) + 1)
    pool = draw.choice(vocabulary, 4_000_000, p=chance / chance.sum())
    half = len(pool) // 2  # held-out texts share nothing with the others, but for leaks
    found: list[Candidate] = []
    for number in range(count):
        size = int(draw.integers(80, 400))
        train = number < count - HELD_OUT
        at = int(draw.integers(0, half - size - 40)) if train else half + 500 * (number % HELD_OUT)
        said = pool[at : at + size].tolist()
        if number % 10 == 9 and train:  # a near copy of an earlier one
            said = found[int(draw.integers(0, number))].reply.partition("</think>")[0].split()[1:]
            said[len(said) // 2] = "other"
        if number % 50 == 7 and train:
            said += ["wait", "no"] * 150
        if number % 50 == 11 and train:
            said += ["所以答案是三因为二加一等于三" * 3]
        if number % 100 == 13 and train:
            said += pool[half + 5 * number : half + 5 * number + 60].tolist()
        lines = [" ".join(said[begin : begin + 60]) for begin in range(0, len(said), 60)]
        thoughts, answer = "\n\n".join(lines), int(draw.integers(0, 50))
        found.append(
            Candidate(
                id=f"{number:016x}",
                row_id=f"row {number // 2}",
                split="train" if train else "heldout",
                topic=TOPICS[number % len(TOPICS)],
                prompt=" ".join(pool[at + size : at + size + 30].tolist()),
                reply=f"<think> {thoughts}</think>The answer is {answer}.",
                reference=str(answer if draw.random() < 0.8 else answer + 1),
                finish_reason="stop" if draw.random() < 0.97 else "length",
                num_tokens=size,
            )
        )
    return found


def templated(count: int) -> list[Candidate]:
    """Replies that share 82 of their 100 words, in order."""
    fixed = " ".join(f"t{at}" for at in range(82))
    texts = (f"{fixed} " + " ".join(f"x{number}y{at}" for at in range(18)) for number in range(count))
    return [Candidate(f"{number:016x}", f"row {number}", "train", "", "p", text) for number, text in enumerate(texts)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    made = replies(args.replies + HELD_OUT)
    train, held_out = made[: args.replies], made[args.replies :]
    characters = statistics.median(len(one.reply) for one in train)
    print(f"# {len(train):,} replies of {characters:,.0f} characters (median), {len(held_out):,} held out")
    rules = [TypeAdapter(CurateRule).validate_python(rule) for rule in RULES]
    print(f"{'rule':18} {'seconds':>8} {'replies/s':>10} {'left out':>9}")
    for rule in rules:
        told(rule.kind, train, held_out, [rule], args.rounds)
    told("all, in order", train, held_out, rules, args.rounds)
    template = templated(args.replies // 4)
    near = [rule for rule in rules if rule.kind == "near_duplicates"]
    told("near (template)", template, [], near, args.rounds)
    tracemalloc.start()
    curate(train, near, Context(verify_all))
    print(f"# near_duplicates: {tracemalloc.get_traced_memory()[1] / len(train) / 1024:.1f} KiB a reply at its peak")


def told(name: str, train: list[Candidate], held_out: list[Candidate], rules: list, rounds: int) -> None:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        found = curate(train, rules, Context(verify_all, held_out))
        taken.append(time.perf_counter() - begun)
    seconds = statistics.median(taken)
    print(f"{name:18} {seconds:8.2f} {len(train) / seconds:10,.0f} {len(found.rejected):9,}")


if __name__ == "__main__":
    main()
