"""`limbeck init`: a commented recipe for the user's case. Comments are the fields' own descriptions."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config.schema import default_kind, default_section, kinds_of, options_of, sections_of
from limbeck.config.yaml import dump_yaml
from limbeck.errors import RecipeError, StoreError
from limbeck.recipe import Recipe
from limbeck.system.sealed import read_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

DEMO_TEACHER, DEMO_LAYERS = "smollm2-135m", 20
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".md")
WIDTH = 116

# Written out even where they are at their default: what one looks at first. The rest is there as comments.
MAIN = {
    "data.max_length", "trace.mode.kind", "trace.target.kind", "objective.divergence.kind", "objective.temperature",
    "objective.ce_weight", "train.optimizer.lr", "train.schedule.kind", "train.batch_tokens", "evaluate.answers",
}  # fmt: skip


@dataclass(frozen=True)
class InitChoice:
    """The user's case. `student` is a path; without it the teacher is pruned to `layers`, or a new model of
    `parameters` (such as "17M") is built. `preset` "r1": fine-tuning on reasoning traces that exist, as DeepSeek-R1's
    small models were made."""

    teacher: str = DEMO_TEACHER
    data: str = "stdlib"
    mode: str = "score"
    student: str | None = None
    layers: int | None = None
    parameters: str | None = None
    name: str = "distilled"
    preset: str | None = None


R1_RATES = ((1.5, 1e-4), (7.0, 8e-5), (8.0, 5e-5), (14.0, 7e-5), (32.0, 6e-5), (70.0, 2e-5))
"""Billions of parameters and learning rates of DeepSeek-R1's distilled models (arXiv 2501.12948, supplement): Qwen of
1.5, 7, 14 and 32, Llama of 8 and 70. Two to three epochs, 64 rows a step, 32,768 tokens, cosine to a tenth."""

R1_CONTEXT, R1_ROWS = 32_768, 64


def write_recipe(text: str, out: Path, *, force: bool) -> None:
    """Write a new file; with `force` replace one that exists. Raises RecipeError."""
    try:
        with out.open("w" if force else "x") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(
            f"{out} exists already; choose another name with --out, or replace it with --force."
        ) from error
    except OSError as error:
        raise RecipeError(f"{out} cannot be written: {error.strerror}.") from error


def recipe_text(choice: InitChoice) -> str:
    """A commented recipe that loads. Raises RecipeError when the choice names two students, or none can be guessed."""
    values = {
        "name": choice.name,
        "teacher": {"kind": "hf", "path": choice.teacher},
        "data": {"source": _source(choice.data), "limit": 1000},
        "trace": {"mode": {"kind": choice.mode}},
        "student": _student(choice),
        "train": {"budget": {"kind": "steps", "steps": 100}, "twin": True},
    }
    if choice.preset == "r1":
        values = _as_r1(choice)
    head = [
        "# A Limbeck recipe. Next: `limbeck check FILE`, then `limbeck run FILE`.",
        "# Lines that begin with `# key:` show defaults; every key is described in docs/reference/recipe.md.",
        "",
    ]
    return "\n".join([*head, *_section(Recipe, values, "", 0)]) + "\n"


def _as_r1(choice: InitChoice) -> dict[str, Any]:
    if choice.student is None:
        raise RecipeError("--preset r1 fine-tunes a model that exists: name it with --student (hub id or folder).")
    size = _billions(choice.student)
    rate = min(R1_RATES, key=lambda pair: abs(math.log(pair[0] / size)))[1]
    rules = [{"kind": "finish"}, {"kind": "think"}, {"kind": "repetition"}, {"kind": "exact_duplicates"}]
    return {
        "name": choice.name,
        "teacher": {"kind": "text", "name": "DeepSeek-R1"},
        "data": {"source": _source(choice.data), "max_length": R1_CONTEXT, "long_rows": "skip"},
        "trace": {"target": {"kind": "text"}},
        "curate": rules,
        "student": {"kind": "pretrained", "path": choice.student},
        "objective": {"ce_weight": 1.0},
        "train": {
            "budget": {"kind": "epochs", "epochs": 2.0},
            "optimizer": {"lr": rate},
            "schedule": {"kind": "cosine", "floor": 0.1},
            "batch_tokens": R1_CONTEXT,
            "accumulate": R1_ROWS,
            "activation_checkpointing": True,
        },
    }


def _billions(student: str) -> float:
    """The size of a model, by its config where that is at hand, else by its name. Raises RecipeError."""
    config = Path(student) / "config.json"
    if config.exists():
        facts = read_json(config, "Give another model, or copy this one anew.")
        width, layers, vocab = (facts.get(key, 0) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
        wide = facts.get("intermediate_size", 4 * width)
        return max(layers * width * (2.5 * width + 3 * wide) + vocab * width, 1) / 1e9
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", student)
    if not named:
        raise RecipeError(
            f"the size of {student!r} cannot be read off its name (such as 7B), and it is no folder of a model. "
            "Write the recipe without --preset and set train.optimizer.lr."
        )
    return float(named[1]) / (1000 if named[2] in "mM" else 1)


def _source(data: str) -> dict[str, Any]:
    """What `--data` means: the word `stdlib`, a file, folder or glob, else the name of a dataset."""
    if data == "stdlib":
        return {"kind": "stdlib"}
    if data.startswith("datasets:"):
        return {"kind": "datasets", "path": data.removeprefix("datasets:")}
    is_file = data.endswith(FILE_SUFFIXES) or any(mark in data for mark in "*?[") or Path(data).exists()
    return {"kind": "files" if is_file else "datasets", "path": data}


def _student(choice: InitChoice) -> dict[str, Any]:
    flags = {"--student": choice.student, "--layers": choice.layers, "--parameters": choice.parameters}
    given = [flag for flag, value in flags.items() if value is not None]
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)} name two students; give one of them.")
    if choice.student is not None:
        return {"kind": "pretrained", "path": choice.student}
    if choice.parameters is not None:
        return {"kind": "scratch", "parameters": choice.parameters}
    layers = choice.layers or _usual_layers(choice.teacher)
    if layers is None:
        raise RecipeError(
            f"how large shall the student of {choice.teacher!r} be? Give --layers N (the teacher with N layers), "
            "--parameters 17M (a new model of that size), or --student PATH (a model that exists)."
        )
    return {"kind": "prune", "layers": layers}


def _usual_layers(teacher: str) -> int | None:
    """Two thirds of the teacher's layers, where its config is at hand."""
    if teacher == DEMO_TEACHER:
        return DEMO_LAYERS
    try:
        config = read_json(Path(teacher) / "config.json", "")
        layers = config.get("num_hidden_layers") or config.get("n_layer")
        return max(layers * 2 // 3, 1) if isinstance(layers, int) else None
    except StoreError:
        return None


def _section(model: type[BaseModel], values: dict[str, Any], path: str, depth: int) -> list[str]:
    """The lines of one section: a value that was chosen or is of MAIN stands, a default is a comment."""
    lines: list[str] = []
    for name, info in model.model_fields.items():
        where = f"{path}{name}"
        if _is_line(info, values.get(name)):
            stands = name in values or where in MAIN
            lines += _value(name, info, values.get(name, info.default), depth, comment=not stands)
            continue
        inner = dict(values.get(name, {}))
        kinds = kinds_of(info)
        if kinds:
            inner.setdefault("kind", default_kind(info))
        chosen = kinds[inner["kind"]] if kinds else sections_of(info)[0]
        lines += [""] * (depth == 0) + _about(chosen, [kind for kind in kinds if kind != inner["kind"]], depth)
        inside = _section(chosen, inner, f"{where}.", depth + 1)
        if all(line.lstrip().startswith("#") for line in inside):  # a section of comments would be empty, not absent
            default = info.get_default(call_default_factory=True).model_dump()
            lines += _value(name, info, default, depth, comment=True)
        else:
            lines += [f"{'  ' * depth}{name}:", *inside]
    return lines


def _is_line(info: FieldInfo, given: Any) -> bool:
    """Whether a field is written on one line: a value, or a section that is absent."""
    absent = not isinstance(given, dict) and not info.is_required() and default_section(info) is None
    return not sections_of(info) or absent


def _about(model: type[BaseModel], others: list[str], depth: int) -> list[str]:
    """The section's docstring, and what it could be instead, as comment lines."""
    text = inspect.cleandoc(model.__doc__ or "").replace("\n", " ")
    text = f"{text} Other kinds: {', '.join(others)}.".strip() if others else text
    return textwrap.wrap(text, WIDTH, initial_indent="  " * depth + "# ", subsequent_indent="  " * depth + "# ")


def _value(name: str, info: FieldInfo, value: Any, depth: int, *, comment: bool) -> list[str]:
    """One key with its description behind it; above it where the line would be too long."""
    options = options_of(info)
    text = "  ".join(filter(None, [info.description, f"({', '.join(options)})" if len(options) > 1 else None]))
    pad = "  " * depth + ("# " if comment else "")
    line = f"{pad}{name}: {dump_yaml(value, flow=True).strip()}"
    if not text:
        return [line]
    joined = f"{line:<28}  # {text}"
    return [joined] if len(joined) <= WIDTH else [f"{'  ' * depth}# {text}", line]
