"""The router on public intent data: accuracy, out-of-scope AUROC, calibration, speed, against TF-IDF and logistic
regression with the highest probability as the score (MSP, Hendrycks and Gimpel 2017).

    python benchmarks/router.py [--data shared/data] [--draws 5] [--only clinc banking speed]

CLINC150 (Larson et al. 2019): its ten domains are the experts; out of scope are its own 1,000 such rows, and, where
only some domains are experts, the rows of the others. BANKING77 (Casanueva et al. 2020): its intents are the experts;
some are left out. Nothing out of scope is seen in training by any method. `--data` holds
clinc150/{train,validation,test}.jsonl and banking77/{train,test}.csv; without them only speed is measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import machine

from limbeck.metrics.calibration import ece, reliability
from limbeck.router.dataset import FitSettings, PromptCase
from limbeck.router.estimates import softmax
from limbeck.router.fit import featurize_all, fit
from limbeck.router.frontier import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.router.router import Router

Labelled = list[tuple[str, str]]  # prompt, expert
METHODS = ("router", "its largest logit", "its MSP", "TF-IDF + LR, MSP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["clinc", "banking", "speed"])
    args = parser.parse_args()
    print(f"# {machine()}")
    if "clinc" in args.only:
        clinc(args.data / "clinc150", args.draws)
    if "banking" in args.only:
        banking(args.data / "banking77", args.draws)
    if "speed" in args.only:
        speed()


# ---- data ------------------------------------------------------------------------------------------------------------


def clinc(folder: Path, draws: int) -> None:
    if not folder.is_dir():
        print(f"# clinc150: no data in {folder}, skipped")
        return
    rows = {split: _jsonl(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    domains = sorted({name for _, name in rows["train"]} - {"oos"})
    strangers = [text for text, name in rows["test"] if name == "oos"]
    compared("CLINC150, 10 domains; out of scope: its own", [_clinc(rows, domains)], [strangers])
    draw = random.Random(0)
    chosen = [sorted(draw.sample(domains, 3)) for _ in range(draws)]
    parts = [_clinc(rows, names) for names in chosen]
    compared(f"CLINC150, 3 domains, {draws} draws; out of scope: its own", parts, [strangers] * draws)
    others = [[text for text, name in rows["test"] if name not in (*names, "oos")] for names in chosen]
    compared(f"CLINC150, 3 domains, {draws} draws; out of scope: the other 7", parts, others)


def _jsonl(path: Path) -> Labelled:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["text"], line["domain"]) for line in lines]


def _clinc(rows: dict[str, Labelled], names: Sequence[str]) -> tuple[Labelled, Labelled, Labelled]:
    train, held, test = ([row for row in rows[split] if row[1] in names] for split in ("train", "validation", "test"))
    return train, held, test


def banking(folder: Path, draws: int) -> None:
    if not folder.is_dir():
        print(f"# banking77: no data in {folder}, skipped")
        return
    rows = {}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            rows[split] = [(line["text"], line["category"]) for line in csv.DictReader(file)]
    intents = sorted({name for _, name in rows["train"]})
    draw = random.Random(0)
    compared("BANKING77, 77 intents", [_banking(rows, intents)], [[]])
    parts, strangers = [], []
    for _ in range(min(draws, 3)):
        names = sorted(draw.sample(intents, 58))
        parts.append(_banking(rows, names))
        strangers.append([text for text, name in rows["test"] if name not in names])
    compared("BANKING77, 58 intents, 3 draws; out of scope: the other 19", parts, strangers)


def _banking(rows: dict[str, Labelled], names: Sequence[str]) -> tuple[Labelled, Labelled, Labelled]:
    """Of the training rows of each intent a fifth, at least 10, calibrate."""
    train, held, seen = [], [], Counter()
    for text, name in rows["train"]:
        if name in names:
            seen[name] += 1
            (held if seen[name] % 5 == 0 or seen[name] in (1, 2, 3, 4, 6, 7) else train).append((text, name))
    return train, held, [row for row in rows["test"] if row[1] in names]


# ---- methods ---------------------------------------------------------------------------------------------------------


def compared(title: str, parts: list[tuple[Labelled, Labelled, Labelled]], strangers: list[list[str]]) -> None:
    """Means over the draws, with the lowest and highest of them."""
    found: dict[str, list[dict[str, float]]] = {}
    for (train, held, test), outside in zip(parts, strangers, strict=True):
        for method, figures in {**ours(train, held, test, outside), **tfidf(train + held, test, outside)}.items():
            found.setdefault(method, []).append(figures)
    print(f"\n{title}\n{'':18} {'accuracy':>9} {'AUROC':>7} {'':16} {'ECE':>6} {'fit, s':>7}")
    for method, rows in found.items():
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        lowest, highest = min(row["auroc"] for row in rows), max(row["auroc"] for row in rows)
        spread = f"({lowest:.3f} to {highest:.3f})" if len(rows) > 1 else ""
        print(
            f"{method:18} {mean['accuracy']:9.4f} {mean['auroc']:7.3f} {spread:16} {mean['ece']:6.3f} "
            f"{mean['fit']:7.1f}"
        )
    kept = [row["kept"] for row in found["router"]]
    refused = [row["refused"] for row in found["router"]]
    print(
        f"# the router's threshold keeps {statistics.mean(kept):.1%} in scope, refuses {statistics.mean(refused):.1%}"
    )


def ours(train: Labelled, held: Labelled, test: Labelled, outside: list[str]) -> dict[str, dict[str, float]]:
    names = sorted({name for _, name in train})
    cases = [
        PromptCase(name, text, split) for split, rows in (("train", train), ("heldout", held)) for text, name in rows
    ]
    begun = time.perf_counter()
    router = fit(cases, FitSettings({**dict.fromkeys(names, 0.1), "teacher": 1.0})).router
    seconds = time.perf_counter() - begun
    inside, beyond = featurize_all(router, [text for text, _ in test]), featurize_all(router, outside)
    label = np.array([router.experts.index(name) for _, name in test])
    chance, far = (softmax(looks.logits_NE / router.settings.temperature) for looks in (inside, beyond))
    base = {
        "accuracy": float((chance.argmax(1) == label).mean()),
        "ece": _ece(chance, label),
        "fit": seconds,
        **_threshold(router, inside.scope_NF, beyond.scope_NF),
    }
    scores = {
        METHODS[0]: (router.in_scope(inside.scope_NF), router.in_scope(beyond.scope_NF)),
        METHODS[1]: (inside.scope_NF[:, 0], beyond.scope_NF[:, 0]),
        METHODS[2]: (chance.max(1), far.max(1) if len(far) else np.empty(0)),
    }
    return {name: {**base, "auroc": _area(ins, out)} for name, (ins, out) in scores.items()}


def _threshold(router: Router, inside: np.ndarray, beyond: np.ndarray) -> dict[str, float]:
    share = lambda rows: float((router.in_scope(rows) >= router.settings.threshold).mean()) if len(rows) else np.nan  # noqa: E731
    return {"kept": share(inside), "refused": 1 - share(beyond)}


def _area(inside: np.ndarray, outside: np.ndarray) -> float:
    found = auroc(inside, outside)
    return found.value if found else float("nan")


def _ece(chance: np.ndarray, label: np.ndarray) -> float:
    right = torch.from_numpy((chance.argmax(1) == label).astype(float))
    return ece(reliability(torch.from_numpy(chance.max(1)), right))


def tfidf(train: Labelled, test: Labelled, outside: list[str]) -> dict[str, dict[str, float]]:
    """scikit-learn's own, as most would write it. {} where it is not installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        print("# scikit-learn is not installed: no TF-IDF + LR beside")
        return {}
    begun = time.perf_counter()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    model.fit([text for text, _ in train], [name for _, name in train])
    seconds = time.perf_counter() - begun
    chance = model.predict_proba([text for text, _ in test])
    label = np.array([list(model.classes_).index(name) for _, name in test])
    far = model.predict_proba(outside).max(1) if outside else np.empty(0)
    figures = {
        "accuracy": float((chance.argmax(1) == label).mean()),
        "auroc": _area(chance.max(1), far),
        "ece": _ece(chance, label),
        "fit": seconds,
    }
    return {METHODS[3]: {**figures, "kept": np.nan, "refused": np.nan}}


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed() -> None:
    """decide() on made-up words of many lengths, by a router of three experts with 3,000 prompts each."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(6000)]
    cases = []
    for at, name in enumerate(("one", "two", "three")):
        own = words[2000 * at : 2000 * at + 2000]
        for number in range(3100):
            text = " ".join(draw.choices(own, k=12))
            cases.append(PromptCase(name, text, "train" if number < 3000 else "heldout", _quality(name, number)))
    router = fit(cases, FitSettings({"one": 0.1, "two": 0.1, "three": 0.1, "teacher": 1.0})).router
    print("\ndecide(), milliseconds\ncharacters  median    p95")
    for length in (50, 500, 2000, 4000, 100_000):
        taken = []
        for _ in range(300):
            text = " ".join(draw.choices(words, k=length // 4))[:length]
            begun = time.perf_counter()
            router.decide(text)
            taken.append(1e3 * (time.perf_counter() - begun))
        taken.sort()
        print(f"{length:10,} {statistics.median(taken):7.3f} {taken[285]:6.3f}")


def _quality(name: str, number: int) -> dict[str, float]:
    return {name: float(number % 3 > 0), "teacher": 1.0} if number >= 3000 else {}


if __name__ == "__main__":
    main()
