"""The recipe's section on exports: formats that the student is also written in, and how far they may stray from it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from limbeck.config.problems import problem
from limbeck.config.schema import Section, did_you_mean
from limbeck.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from limbeck.config.problems import Problem

Bound = Annotated[float, Field(gt=0.0)]
BOUND = "largest mean KL(source || export) in nats per token; null is the bound of the quantisation's bits"


class SafetensorsExport(Section):
    """What transformers opens: weights cast, or int8 (weights of linear layers, extra `export`)."""

    kind: Literal["safetensors"] = "safetensors"
    quant: Literal["float32", "float16", "bfloat16", "int8"] = Field(default="bfloat16", description="type of weights")
    max_kl: Bound | None = Field(default=None, description=BOUND)


class GgufExport(Section):
    """One file that llama.cpp, Ollama and their relatives run (extras `export` and `llamacpp`)."""

    kind: Literal["gguf"] = "gguf"
    quant: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"] = Field(
        default="q8_0", description="type of weights"
    )
    max_kl: Bound | None = Field(default=None, description=f"{BOUND}; must be given below 8 bits")


class OnnxExport(Section):
    """A graph that onnxruntime runs (extra `export`)."""

    kind: Literal["onnx"] = "onnx"
    quant: Literal["fp32", "int8", "int4"] = Field(default="int8", description="type of weights")
    max_kl: Bound | None = Field(default=None, description=f"{BOUND}; must be given below 8 bits")


Export = SafetensorsExport | GgufExport | OnnxExport

EXPORTS: dict[str, type[Export]] = {"safetensors": SafetensorsExport, "gguf": GgufExport, "onnx": OnnxExport}

BITS: dict[str, float] = {
    **{"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "fp32": 32, "int4": 4},
    **{"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_0": 4.5},
}
"""Bits of a weight, scales included."""

BOUNDS = {"bfloat16": 1e-3, "bf16": 1e-3}
"""bfloat16 keeps 8 bits of a number where float16 keeps 11, and its rounding alone takes more than 1e-4: 2.6e-4 on the
demo teacher with weights of single precision (docs/how-to/export.md)."""
WHOLE, EIGHT = 1e-4, 0.02

PACKAGES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("safetensors", "int8"): (("torchao", "export"),),
    ("gguf", ""): (("gguf", "export"), ("cyllama", "llamacpp")),
    ("onnx", ""): (("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "export")),
}
"""Optional packages, and the extras that bring them, by kind and quantisation ("": all)."""


def quants_of(kind: str) -> tuple[str, ...]:
    """The quantisations of a kind of export."""
    return get_args(EXPORTS[kind].model_fields["quant"].annotation)


def packages_of(export: Export) -> tuple[tuple[str, str], ...]:
    """Pairs of an optional package that writing and judging an export needs, and its extra."""
    return PACKAGES.get((export.kind, ""), ()) or PACKAGES.get((export.kind, export.quant), ())


def name_of_export(export: Export) -> str:
    """Its folder's name: "gguf-q8_0"."""
    return f"{export.kind}-{export.quant}"


def bound_of(export: Export) -> float:
    """The mean KL in nats beyond which an export is refused. Raises RecipeError where it must be given and is not."""
    if export.max_kl is not None:
        return export.max_kl
    if BITS[export.quant] >= 16:
        return BOUNDS.get(export.quant, WHOLE)
    if BITS[export.quant] >= 8:
        return EIGHT
    raise RecipeError(f"max_kl {_unbounded(export)}")


def _unbounded(export: Export) -> str:
    return (
        f"must be given for {export.quant}: below 8 bits what is lost depends on the model, so no bound is right for "
        "all. Say what you accept, in nats per token, such as 0.1; the export tells what it measured."
    )


def make_export(kind: str, quant: str | None, max_kl: float | None) -> Export:
    """The section from words of the command line. Raises RecipeError: what was found, what is allowed."""
    if kind not in EXPORTS:
        raise RecipeError(
            f"the format is {kind!r}; it must be one of {', '.join(EXPORTS)}.{did_you_mean(kind, EXPORTS)}"
        )
    words: dict[str, object] = {"kind": kind, "max_kl": max_kl}
    if quant is not None:
        if quant not in quants_of(kind):
            others = [other for other in EXPORTS if quant in quants_of(other)]
            hint = f" It is one of {others[0]}." if others else did_you_mean(quant, quants_of(kind))
            raise RecipeError(f"quant is {quant!r}; for {kind} it must be one of {', '.join(quants_of(kind))}.{hint}")
        words["quant"] = quant
    if max_kl is not None and not 0 < max_kl < float("inf"):
        raise RecipeError(f"max_kl is {max_kl:g}; it must be above 0 and finite, in nats per token.")
    made = EXPORTS[kind].model_validate(words)
    bound_of(made)
    return made


def export_problems(exports: Iterable[Export]) -> Iterator[Problem]:
    """What contradicts itself or has no effect."""
    times = Counter(map(name_of_export, exports := tuple(exports)))
    seen: set[str] = set()
    for number, export in enumerate(exports):
        where, name = f"export[{number}]", name_of_export(export)
        if times[name] > 1 and name in seen:
            yield problem(where, f"is {export.kind} {export.quant} once more: both would be one folder. Remove one.")
        seen.add(name)
        if export.max_kl is None and BITS[export.quant] < 8:
            yield problem(f"{where}.max_kl", _unbounded(export))
