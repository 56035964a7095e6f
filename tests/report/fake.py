"""A run folder as the jobs leave it, without any model: what the report is tested on."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
name: stdlib-101m
seed: 0
scope: Python functions in the style of the standard library
teacher: {kind: hf, path: smollm2-135m, dtype: auto}
data:
  source: {kind: stdlib}
  max_length: 256
  holdout: 0.1
student: {kind: prune, layers: 20}
objective:
  divergence: {kind: forward_kl}
  temperature: 1.0
  ce_weight: 0.0
train:
  budget: {kind: tokens, tokens: 160000}
  twin: true
"""
TOPICS = ("asyncio", "collections", "email.message", "http.client", "json", "logging", "random", "typing", "xml.dom")
TRUTH = "    return [item for item in values if item is not None]\n"
PROMPT = (
    'def compact(values):\n    """Return a list without the items that are None.\n\n    The order is kept.\n    """\n'
)


def make_run(path: Path, *, twin: bool = True, topics: tuple[str, ...] = TOPICS, steps: int = 400) -> Path:
    """Write a whole run folder at `path`, with plausible figures; the same every time."""
    roles = ["student", "twin"] if twin else ["student"]
    write(path / "recipe.yaml", RECIPE)
    write(path / "summary.json", summary(roles))
    write(path / "evaluate" / "details.json", details(roles, topics))
    write(path / "evaluate" / "answers.json", [answer(roles, seed) for seed in range(2)])
    for number, role in enumerate(roles):
        lines = [json.dumps(line) for line in metrics(role, steps, number)]
        write(path / "train" / role / "metrics.jsonl", "\n".join(lines) + "\n")
    return path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


SCORES = {
    "teacher": (0.0, 1.0, 6.84, 0.021, 134_515_008, 269_060_552, 1120.0),
    "student": (0.412, 0.7124, 10.31, 0.034, 99_119_808, 198_268_680, 1535.0),
    "twin": (0.701, 0.6303, 10.92, 0.058, 99_119_808, 198_268_680, 1528.0),
}
KEYS = ("kl", "agreement", "perplexity", "ece", "parameters", "bytes", "tokens_per_second")


def summary(roles: list[str]) -> dict[str, Any]:
    verdict: dict[str, Any] = {
        "helped": True,
        "state": "good",
        "claim": "Distillation helped: on 240 held-out rows the student is closer to the teacher than its twin, and "
        "predicts the text better",
        "figures": "KL 0.412 against 0.701 (difference -0.289, 95% interval -0.312 to -0.267)",
        "advice": "",
        "sentence": "Distillation helped: as above.",
        "ce": {"student": [2.333, 2.3, 2.36], "twin": [2.391, 2.36, 2.42], "difference": [-0.058, -0.07, -0.046]},
        "kl": {"student": [0.412, 0.391, 0.434], "twin": [0.701, 0.672, 0.731], "difference": [-0.289, -0.312, -0.267]},
        "agreement": {
            "student": [0.7124, 0.7013, 0.7229],
            "twin": [0.6303, 0.6192, 0.6411],
            "difference": [0.0821, 0.073, 0.091],
        },
    }
    if "twin" not in roles:
        verdict["helped"] = None
        verdict["claim"] = verdict["sentence"] = "Whether distillation helped cannot be said without a twin"
        for key in ("kl", "agreement", "ce"):
            verdict[key] = {"student": verdict[key]["student"]}
        verdict["state"] = "open"
    return {
        "name": "stdlib-101m",
        "scope": "Python functions in the style of the standard library",
        **{who: dict(zip(KEYS, SCORES[who], strict=True)) for who in ("teacher", *roles)},
        "verdict": verdict,
        "warnings": [],
        "stages": stages(roles),
        "data": {
            "read": 4423,
            "train": 4171,
            "heldout": 240,
            "tokens": 602_113,
            "supervised": 597_702,
            "duplicates": 12,
            "bad": 0,
            "topics": {name: {"train": 400, "heldout": 24} for name in TOPICS},
            "notes": [],
        },
        "environment": {
            "python": "3.11.7",
            "system": "Linux x86_64",
            "cpu_cores": 2,
            "threads": 2,
            "accelerator": None,
            "packages": {"limbeck": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "tokenizers": "0.23.3"},
        },
    }


def stages(roles: list[str]) -> dict[str, Any]:
    names = ["data", "label", "student", "train", *(["twin"] if "twin" in roles else []), "evaluate"]
    seconds = {"data": 4.2, "label": 171.0, "student": 6.4, "train": 214.5, "twin": 208.0, "evaluate": 128.0}
    out: dict[str, Any] = {}
    for number, name in enumerate(names):
        took = {"seconds": seconds[name], "peak_bytes": 2**30 + number * 2**28, "disk_bytes": number * 37 * 2**20}
        guess = {key: value * (0.86 + 0.07 * number) for key, value in took.items()}
        out[name] = {"estimated": None if name == "data" else guess, "took": took}
    return out


def details(roles: list[str], topics: tuple[str, ...]) -> dict[str, Any]:
    edges = [1, 2, 3, 5, 7, 11, 16, 23, 33, 47, 67, 96, 136, 194, 257]
    level = {"teacher": 0.0, "student": 0.36, "twin": 0.62}
    models = ("teacher", *roles)
    draw = random.Random(5)
    return {
        "version": 1,
        "rows": 240,
        "prompts": 240,
        "positions": 33_207,
        "vocab": 49_152,
        "teacher_entropy": 1.71,
        "models": {name: measured(name) for name in models},
        "by_position": {
            "edges": edges,
            "count": [240] * (len(edges) - 1),
            "kl": {m: [level[m] * (1 + 2.2 / math.sqrt(low)) for low in edges[:-1]] for m in models},
            "agreement": {m: [1 - level[m] / 2 for _ in edges[:-1]] for m in models},
        },
        "topics": [topic(name, number, roles, draw) for number, name in enumerate(topics)] if len(topics) > 1 else [],
        "reliability": {name: reliability(0.04 * number) for number, name in enumerate(models)},
        "warnings": [],
    }


def measured(name: str) -> dict[str, Any]:
    factor = {"teacher": 1.0, "student": 0.74, "twin": 0.74}[name]
    return {
        "tv": {"teacher": 0.0, "student": 0.231, "twin": 0.309}[name],
        "accuracy": {"teacher": 0.583, "student": 0.521, "twin": 0.515}[name],
        "repeated_errors": {"teacher": 1.0, "student": 0.412, "twin": 0.287}[name],
        "speed": {"memory_bytes": int(620 * 2**20 * factor), "rounds": 5},
        "writing_tokens_per_second": 22.0 / factor,
    }


def topic(name: str, number: int, roles: list[str], draw: random.Random) -> dict[str, Any]:
    middle = {"student": 0.71 + draw.uniform(-0.08, 0.08)}
    middle["twin"] = middle["student"] - draw.uniform(0.01, 0.12)
    spread = draw.uniform(0.012, 0.05)
    agreement = {role: [middle[role], middle[role] - spread, middle[role] + spread] for role in roles}
    return {"topic": name, "rows": 24 - number, "positions": 3000 - 90 * number, "kl": {}, "agreement": agreement}


def reliability(gap: float) -> dict[str, list[float]]:
    centres = [(number + 0.5) / 15 for number in range(15)]
    return {
        "count": [200.0 + 260.0 * number**2 / 20 for number in range(15)],
        "confidence": centres,
        "accuracy": [max(centre - gap * math.sin(math.pi * centre) * 2, 0.0) for centre in centres],
    }


def answer(roles: list[str], seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    words = [
        "    return",
        " [",
        "item",
        " for",
        " item",
        " in",
        " values",
        " if",
        " item",
        " is",
        " not",
        " None",
        "]",
        "\n",
    ]
    other = {"student": 0.2, "twin": 0.4, "teacher": 0.0}
    answers = {}
    for name in ("teacher", *roles):
        pieces = []
        for word in words * 2:
            agrees = draw.random() >= other[name]
            pieces.append(
                [word if agrees else draw.choice([" x", " list", "(", word]), agrees, draw.random() ** 3, word]
            )
        answers[name] = {"pieces": pieces, "finish_reason": draw.choice(["stop", "length"])}
    return {"id": f"r{seed}", "topic": TOPICS[seed], "prompt": PROMPT, "truth": TRUTH, "answers": answers}


def metrics(role: str, steps: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    lines = []
    for step in range(1, steps + 1):
        kl = 0.36 + 2.4 * math.exp(-step / 60) + draw.gauss(0, 0.06)
        ce = 2.32 + 2.9 * math.exp(-step / 55) + draw.gauss(0, 0.09)
        line = {"step": step, "tokens": step * 400, "seconds": step * 0.53, "loss": kl, "kl": kl, "ce": ce, "lr": 3e-4}
        if role == "twin":
            line |= {"loss": ce - 0.04}
            del line["kl"]
        lines.append(line)
    return lines
