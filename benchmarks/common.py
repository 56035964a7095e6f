"""What every benchmark shares: the demo teacher, real rows, and interleaved timing."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from limbeck.data import read_examples
from limbeck.models.hf import HfLM
from limbeck.models.open import open_hf
from limbeck.recipe import FileSource, StdlibSource
from limbeck.students.prune import prune_layers
from limbeck.text.encode import Encoder
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedModel

TEACHER = "smollm2-135m"


def interleave(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run A B C A B C after one warm-up, with the load of other processes noted. Work that
    returns a float has looked at the clock itself."""
    for each in work.values():
        each()
    times: dict[str, list[float]] = {name: [] for name in work}
    foreign = []
    for _ in range(rounds):
        for name, each in work.items():
            own, begun = time.process_time(), time.perf_counter()
            busy = _busy_seconds()
            own_clock = each()
            wall = time.perf_counter() - begun
            times[name].append(own_clock if isinstance(own_clock, float) else wall)
            foreign.append(max(_busy_seconds() - busy - (time.process_time() - own), 0.0) / wall)
    print(f"# {rounds} rounds, interleaved; other processes used {statistics.median(foreign):.2f} cores (median)")
    return {name: statistics.median(values) for name, values in times.items()}


def _busy_seconds() -> float:
    """CPU seconds that all processes have used (Linux); 0 elsewhere."""
    try:
        with open("/proc/stat") as file:
            fields = [int(value) for value in file.readline().split()[1:]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"


def stdlib_rows(teacher: HfLM, count: int, max_length: int = 512) -> list[Row]:
    """The first documented functions of the standard library, spread evenly over it, as rows."""
    return encoded_rows(teacher, StdlibSource(), count, max_length, chat_template=False)


def encoded_rows(
    teacher: HfLM, source: StdlibSource | FileSource, count: int, max_length: int = 512, *, chat_template: bool
) -> list[Row]:
    """Examples of a source, spread evenly over it, as rows."""
    examples = list(read_examples(source, bad_rows="skip", on_bad=lambda _: None))
    encoder = Encoder(
        teacher.tokenizer, max_length=max_length, long_rows="truncate", chat_template=chat_template, need_reply=True
    )
    rows = []
    for number, example in enumerate(examples[:: max(len(examples) // count, 1)][:count]):
        encoded = encoder.encode(example)
        rows.append(Row(str(number), "train", example.topic, encoded.text, encoded.ids, encoded.spans, example.source))
    return rows


def teacher(dtype: str = "auto") -> HfLM:
    return open_hf(TEACHER, dtype=dtype)


def student(teacher: HfLM, layers: int = 20) -> PreTrainedModel:
    """The teacher's first layers in float32: the demo student's shape."""
    return prune_layers(teacher.model, tuple(range(layers))).float()


__all__ = [
    "TEACHER",
    "AutoModelForCausalLM",
    "encoded_rows",
    "interleave",
    "machine",
    "stdlib_rows",
    "student",
    "teacher",
]
