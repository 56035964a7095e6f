"""Rejection sampling at an endpoint: processor time a reply against the most replies a prompt may have.

    python benchmarks/rejection.py [--replies 1024] [--draws 1 4 16 64]

No reply is ever right, so that every prompt is asked for all of its draws, one after the other; the endpoint answers at
once. The number of replies is the same in every line: what a reply costs must not depend on how many came before it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

from ask import prompts, recipe_of, run_stub

from limbeck.label.remote import run_ask
from limbeck.label.replies import keep_text
from limbeck.models.gguf_import import resolve_model
from limbeck.text.tokenizer import load_tokenizer
from limbeck.types import Callbacks

NEVER = {"verifier": {"kind": "regex", "pattern": "no bird says this"}, "num_correct": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, default=1024)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4, 16, 64])
    args = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=run_stub, args=(0.0, theirs), daemon=True)
    stub.start()
    port = ours.recv()
    for draws in (args.draws[0], *args.draws):  # the first is a warm-up
        rows = prompts(tokenizer, args.replies // draws)
        mode = {"kind": "generate", "max_tokens": 64, "n": draws, "rejection": NEVER if draws > 1 else None}
        recipe = recipe_of(port, 16, mode)
        with tempfile.TemporaryDirectory() as folder:
            cpu = time.process_time()
            quiet = Callbacks(lambda _: None, print, lambda: False)
            run_ask(recipe, Path(folder) / "traces", keep_text(recipe, tokenizer), rows, quiet)
            cpu = time.process_time() - cpu
        print(f"n {draws:3}: {cpu / (len(rows) * draws) * 1e3:6.2f} ms of processor time a reply")
    stub.terminate()


if __name__ == "__main__":
    main()
