"""What an evaluation leaves on disk: sums per row, the details that the report draws, and the answers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.evaluate.compare import METRICS, TEACHER, Evaluation
from limbeck.metrics.calibration import ece
from limbeck.metrics.intervals import Bootstrap, paired_bootstrap
from limbeck.system.atomic import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.evaluate.samples import SampleAnswers
    from limbeck.evaluate.speed import Speed

MOST_TOPICS = 64
TOPIC_LENGTH = 80


def to_json(value: Any) -> str:
    """JSON as every reader takes it: no NaN, no Infinity."""
    return json.dumps(value, indent=1, allow_nan=False)


def perplexity(ce: float) -> float:
    """exp(cross-entropy), kept finite."""
    return math.exp(min(ce, 700.0))


def intervals_json(bootstrap: Bootstrap) -> dict[str, list[float]]:
    """[mean, low, high] of each model, and of the difference where there is one."""
    parts = {name: list(interval) for name, interval in bootstrap.models.items()}
    return parts if bootstrap.difference is None else parts | {"difference": list(bootstrap.difference)}


def write_scores(path: Path, found: Evaluation) -> None:
    """One line per row and model: the row's positions, and sums over them."""
    num = len(found.ids)
    columns: dict[str, Any] = {
        "model": np.repeat(found.models, num),
        "row": found.ids * len(found.models),
        "prompt": found.clusters * len(found.models),
        "topic": found.topics * len(found.models),
        "positions": np.tile(found.positions_R.astype(np.int64), len(found.models)),
        "teacher_entropy": np.tile(found.entropy_R, len(found.models)),
        "teacher_errors": np.tile(found.errors_R.astype(np.int64), len(found.models)),
    }
    for metric in METRICS:
        columns[metric] = np.concatenate([found.sums[name][metric] for name in found.models])
    with atomic_path(path) as tmp:
        pq.write_table(pa.table(columns), tmp, compression="zstd", write_page_checksum=True)


def write_first_choices(path: Path, found: Evaluation) -> None:
    """The teacher's first choice at every supervised position of every row: agreement can be measured without it."""
    table = pa.table({"row": found.ids, "tokens": pa.array(found.tops, pa.list_(pa.int32()))})
    with atomic_path(path) as tmp:
        pq.write_table(table, tmp, compression="zstd", write_page_checksum=True)


def details(
    found: Evaluation,
    speeds: dict[str, Speed],
    answers: SampleAnswers,
    warnings: list[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that the report draws, means where there are sums."""
    errors = found.errors_R.sum()
    models = {}
    for name in found.models:
        models[name] = {
            **{metric: found.mean(name, metric) for metric in METRICS if metric != "repeated_errors"},
            "perplexity": perplexity(found.mean(name, "ce")),
            "ece": ece(found.reliability[name]),
            "repeated_errors": float(found.sums[name]["repeated_errors"].sum() / errors) if errors else None,
            "speed": asdict(speeds[name]),
            "writing_tokens_per_second": answers.tokens_per_second.get(name),
        }
    return {
        "version": 1,
        "rows": len(found.ids),
        "prompts": len(set(found.clusters)),
        "positions": found.num_positions,
        "vocab": found.vocab,
        "teacher_entropy": float(found.entropy_R.sum() / found.num_positions),
        "models": models,
        "by_position": _by_position(found),
        "topics": topic_scores(found, resamples, seed),
        "reliability": {name: _reliability(found, name) for name in found.models},
        "warnings": warnings,
    }


def _by_position(found: Evaluation) -> dict[str, Any]:
    bins = found.by_position
    kept = np.maximum(bins.count_M, 1)
    return {
        "edges": bins.edges.tolist(),
        "count": bins.count_M.tolist(),
        "kl": {name: (sums / kept).tolist() for name, sums in bins.kl.items()},
        "agreement": {name: (sums / kept).tolist() for name, sums in bins.agreement.items()},
    }


def _reliability(found: Evaluation, name: str) -> dict[str, list[float]]:
    bins = found.reliability[name]
    kept = bins.count_M.clamp_min(1)
    return {
        "count": bins.count_M.tolist(),
        "confidence": (bins.confidence_M / kept).tolist(),
        "accuracy": (bins.correct_M / kept).tolist(),
    }


def topic_scores(found: Evaluation, resamples: int, seed: int) -> list[dict[str, Any]]:
    """KL and agreement by topic, the largest first; beyond MOST_TOPICS the rest is one entry. Empty without topics."""
    positions: dict[str, float] = {}
    for topic, num in zip(found.topics, found.positions_R.tolist(), strict=True):
        positions[topic] = positions.get(topic, 0.0) + num
    if len(positions) < 2:
        return []
    named = sorted(positions, key=lambda topic: (-positions[topic], topic))[:MOST_TOPICS]
    rest = f"{len(positions) - len(named)} other topics"
    label = {topic: (topic or "(none)")[:TOPIC_LENGTH] for topic in named}
    groups: dict[str, list[int]] = {}
    for index, topic in enumerate(found.topics):
        groups.setdefault(label.get(topic, rest), []).append(index)
    return [_topic(found, topic, np.array(index_r), resamples, seed) for topic, index_r in groups.items()]


def _topic(found: Evaluation, topic: str, index_r: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    scores = {}
    for metric in ("kl", "agreement"):
        sums = {name: found.sums[name][metric][index_r] for name in found.models if name != TEACHER}
        clusters = [found.clusters[index] for index in index_r]
        bootstrap = paired_bootstrap(
            sums, found.positions_R[index_r], clusters=clusters, resamples=min(resamples, 1000), seed=seed
        )
        scores[metric] = intervals_json(bootstrap)
    return {"topic": topic, "rows": len(index_r), "positions": int(found.positions_R[index_r].sum()), **scores}


def answers_json(answers: SampleAnswers) -> list[dict[str, Any]]:
    """One entry per prompt; a piece is [text, agrees, chance, what the teacher would have written]."""
    return [
        {
            "id": prompt.id,
            "topic": prompt.topic,
            "prompt": prompt.text,
            "truth": prompt.truth,
            "answers": {
                name: {
                    "pieces": [[*piece[:2], round(piece.chance, 6), piece.instead] for piece in answer.pieces],
                    "finish_reason": answer.finish_reason,
                }
                for name, answer in by_model.items()
            },
        }
        for prompt, by_model in zip(answers.prompts, answers.by_prompt, strict=True)
    ]
