"""Capability transfer: what a small student learns from answers, from a teacher's traces, and from the right ones.

    python benchmarks/transfer.py [--seeds 3] [--out runs/transfer] [--plot docs/lab/transfer.svg]

A teacher of 3.5M parameters is trained on worked solutions of `chain` problems; it writes four traces for each of 1,500
new problems; a student of 0.6M is trained, at equal tokens, by each recipe of recipes/transfer; all answer 500 problems
that none has seen, greedily. Prints the table of docs/lab/transfer.md. A run that was stopped goes on where it was.

Two students are trained at a time, one thread each. Intervals are over problems, the mean of the seeds for each; how
much a seed matters is seen in the single figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import machine
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transfer_chart import draw
from transfer_student import load, right_traces
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from limbeck.data.synthetic import ALPHABET
from limbeck.evaluate.tasks import read_attempts
from limbeck.metrics.pass_at_k import compare_attempts

if TYPE_CHECKING:
    from limbeck.metrics.pass_at_k import Attempts

RECIPES = Path(__file__).parents[1] / "recipes" / "transfer"
ARMS = {
    "answers": "(a) answers only",
    "unfiltered": "(b) all traces",
    "verified": "(c) verified traces",
    "distributions": "(d) verified, distributions",
}
GAPS = (("unfiltered", "answers"), ("verified", "unfiltered"), ("distributions", "verified"))
PAD, END = "<|pad|>", "<|end|>"
WIDTH, LAYERS, HEADS = 384, 2, 6


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character of the problems, and one for each think tag (not special: replies show them)."""
    vocab = {token: id for id, token in enumerate([PAD, END, *ALPHABET])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)


def make_untrained(folder: Path) -> None:
    """A Llama of the teacher's size with random weights, and the tokenizer of all models."""
    if (folder / "config.json").exists():
        return
    tokenizer = character_tokenizer()
    vocab = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 8 // 3 // 16 * 16,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocab[END],
        pad_token_id=vocab[PAD],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def call(name: str, out: Path, *command: str, threads: int = 1) -> None:
    """A Python command in a process of its own; what it says goes to OUT/NAME.log. Exits with it when it fails."""
    log = out / f"{name}.log"
    begun = time.monotonic()
    with log.open("a") as file:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")
    print(f"# {name}: {time.monotonic() - begun:.0f} s", flush=True)


def recipe(verb: str, file: str, run: Path, *overrides: str) -> list[str]:
    """The words of `limbeck VERB` on one of the recipes."""
    return ["-m", "limbeck", verb, str(RECIPES / file), *overrides, "--run-dir", str(run)]


def train_student(arm: str, seed: int, out: Path) -> None:
    if arm == "answers":
        words = recipe(
            "run", "answers.yaml", out / f"{arm}-{seed}", f"student.like={out / 'untrained'}", f"seed={seed}"
        )
    else:
        words = [str(Path(__file__).with_name("transfer_student.py")), arm, str(seed), str(out)]
    call(f"{arm}-{seed}", out, *words)


def attempts_of(run: Path) -> Attempts:
    found = read_attempts(run / "evaluate" / "tasks" / "student.jsonl")
    if found is None:
        sys.exit(f"{run} has no replies to problems; remove its evaluate folder and run again.")
    return found


def together(several: list[Attempts]) -> Attempts:
    """The replies of several seeds to each problem, side by side."""
    return [[reply for replies in each for reply in replies] for each in zip(*several, strict=True)]


def compare(out: Path, seeds: int) -> dict[str, Any]:
    """Pooled scores of teacher and arms, single seeds, and paired differences."""
    teacher = attempts_of(out / "teacher")
    single = {arm: [attempts_of(out / f"{arm}-{seed}") for seed in range(seeds)] for arm in ARMS}
    pooled = {"teacher": together([teacher] * seeds), **{arm: together(found) for arm, found in single.items()}}
    found = compare_attempts(pooled, ks=(1,), teacher="teacher")
    found["seeds"] = {arm: [_pass(one) for one in several] for arm, several in single.items()}
    found["gaps"] = {
        f"{better}-{worse}": compare_attempts(pooled, ks=(1,), pair=(better, worse))["difference"]["pass@1"]
        for better, worse in GAPS
    }
    found["tokens_trained"] = {arm: _trained(out / f"{arm}-0") for arm in ARMS}
    return found


def _pass(attempts: Attempts) -> float:
    return compare_attempts({"student": attempts}, ks=(1,), resamples=1)["models"]["student"]["pass@1"][0]


def _trained(run: Path) -> dict[str, int]:
    """Tokens and supervised positions that a student read, and the rows it read them from."""
    state = json.loads((run / "train" / "student" / "state.json").read_text())
    return {"tokens": state["tokens"], "positions": state["positions"], "steps": state["step"]}


def table(found: dict[str, Any]) -> str:
    """The table and what follows from it, as Markdown."""
    lines = [
        "| 500 new problems, greedy | pass@1 | single seeds | tokens of a reply | teacher's errors repeated (chance) |"
    ]
    lines.append("|---|---|---|---|---|")
    names = {"teacher": "teacher, 3.5M", **ARMS}
    for model, name in names.items():
        mean, low, high = found["models"][model]["pass@1"]
        singles = " ".join(f"{100 * one:.1f}" for one in found["seeds"].get(model, []))
        tokens = found["models"][model]["tokens"][0]
        same = (found.get("inherited") or {}).get(model)
        repeated = f"{100 * same['repeated'][0]:.1f} % ({100 * same['chance'][0]:.1f} %)" if same else ""
        score = f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"| {name} | {score} | {singles} | {tokens:.1f} | {repeated} |")
    lines.append("")
    for key, (mean, low, high) in found["gaps"].items():
        better, worse = (ARMS[arm] for arm in key.split("-"))
        lines.append(f"- {better} against {worse}: {100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of the teacher; with others, rounding differs")
    args = parser.parse_args()
    begun, out = time.monotonic(), args.out
    teacher = out / "teacher"
    make_untrained(out / "untrained")
    words = recipe("run", "teacher.yaml", teacher, f"student.path={out / 'untrained'}")
    call("teacher", out, *words, threads=args.threads)
    artifact = f"teacher.path={teacher / 'train' / 'student' / 'artifact'}"
    call("traces", out, *recipe("label", "traces.yaml", out / "traces", artifact), threads=args.threads)
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(train_student, arm, seed, out) for seed in range(args.seeds) for arm in ARMS]
        for job in jobs:
            job.result()
    found = compare(out, args.seeds)
    (out / "transfer.json").write_text(json.dumps(found, indent=1))
    everything, right = right_traces(load(out), out)
    print(f"# {len(right)} of {len(everything)} traces are right")
    print(f"# {machine()}; {(time.monotonic() - begun) / 60:.1f} minutes in all\n")
    print(table(found))
    if args.plot:
        args.plot.write_text(draw(found, {"teacher": "teacher", **ARMS}))


if __name__ == "__main__":
    main()
