"""Write the pages of docs/reference/ that say what the code says: recipe, commands, Python, errors. Run: make docs."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from limbeck import errors
from limbeck.cli.app import app
from limbeck.recipe.reference import recipe_markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REFERENCE = Path(__file__).parent / "reference"
COMMANDS = """\
# Command reference

Generated from the command line by `make docs`. `limbeck COMMAND --help` says the same. Results go to stdout. Progress
and messages go to stderr. `--json` prints the result, or the error, as one JSON object.

`KEY=VALUE` after a recipe sets any of its [keys](recipe.md) in passing. Exit codes are 0 for success, 1 for a finding
(problems, a statement that does not hold, a damaged expert), 2 for a wrong command line, and those of
[errors](errors.md).
"""
PYTHON = """\
# Python reference

Generated from the code by `make docs`. `import limbeck` loads no torch: names are loaded on first use. Names of tensors
end in their shape: `hidden_ND` has N positions and D features; V is the vocabulary, K the tokens of a support.
[Errors](errors.md) have a page of their own.
"""
ERRORS = """\
# Troubleshooting: errors and exit codes

Generated from `limbeck/errors.py` by `make docs`. Every error that a user can cause is a `LimbeckError`. Each is also a
standard error, so `except ValueError` keeps working. The command line prints the message without a traceback and ends
with the exit code. A message says what was found, what is allowed, and what to do next. An error with a traceback is a
defect of Limbeck: please report it.
"""
VALUES = {str: "text", int: "whole number", float: "number", bool: "flag", Path: "path"}
NAMES = {
    "limbeck": "*",
    "limbeck.losses": "*",
    "limbeck.losses.support": "SupportSpec select join",
    "limbeck.metrics.fidelity": "PositionScores position_scores",
    "limbeck.metrics.calibration": "reliability ece",
    "limbeck.metrics.intervals": "Interval Bootstrap paired_bootstrap",
    "limbeck.metrics.verdict": "TwinVerdict Axes judge judge_words",
    "limbeck.metrics.pass_at_k": "Attempt pass_at_k majority per_problem",
    "limbeck.text.encode": "Encoder Example",
    "limbeck.text.packing": "pack",
    "limbeck.data": "*",
    "limbeck.store": "*",
    "limbeck.students": "*",
    "limbeck.train.distiller": "Distiller",
    "limbeck.train.loop": "fit",
    "limbeck.evaluate.compare": "evaluate_models Evaluation",
    "limbeck.export": "*",
    "limbeck.curate.verifiers": "verify_all",
    "limbeck.export.verified": "export_artifact",
    "limbeck.experts": "*",
    "limbeck.router.fit": "fit",
    "limbeck.router.router": "Router",
    "limbeck.engine.batching": "BatchEngine",
    "limbeck.selftest.run": "run_selftest",
}
"""What the Python reference lists. `*` is what the module exports, or else the public names that it defines."""


# ---- commands --------------------------------------------------------------------------------------------------------


def commands_markdown() -> str:
    root = typer.main.get_command(app)
    return "\n".join([COMMANDS, *_commands(root, typer.Context(root, info_name="limbeck"))]).rstrip() + "\n"


def _commands(command: Any, context: typer.Context) -> Iterator[str]:
    if hasattr(command, "commands"):  # typer brings its own click, whose Group is not click's
        for name, inner in command.commands.items():
            yield from _commands(inner, typer.Context(inner, info_name=name, parent=context))
        return
    yield f"## {context.command_path}\n"
    text, _, rest = inspect.cleandoc(command.help or "").partition("Example: ")
    example, _, more = rest.partition("\n\n")
    yield f"{' '.join(f'{text} {more}'.split())}\n"
    if example:
        yield f"```sh\n{example.strip()}\n```\n"
    yield "| argument or option | value | default | what it does |\n|---|---|---|---|"
    yield from (_parameter(one) for one in command.params if not _hidden(one))
    yield ""


def _hidden(parameter: Any) -> bool:
    return parameter.name == "help" or getattr(parameter, "hidden", False)


def _parameter(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    if parameter.param_type_name == "option":
        name = " ".join([*parameter.opts, *parameter.secondary_opts])
    kind = parameter.type_descriptor.annotation
    several = typing.get_origin(kind) is list
    value = VALUES[typing.get_args(kind)[0] if several else kind] + (", several" if several else "")
    nothing = parameter.required or callable(parameter.default) or parameter.default in (None, [], (), False)
    default = "required" if parameter.required else "" if nothing else f"`{parameter.default}`"
    return _row(f"`{name}`", value, default, parameter.help)


def _row(*cells: object) -> str:
    return "| " + " | ".join(" ".join(str(cell or "").split()).replace("|", "\\|") for cell in cells) + " |"


# ---- Python ----------------------------------------------------------------------------------------------------------


def python_markdown() -> str:
    return "\n".join([PYTHON, *(line for module in NAMES for line in _module(module))]).rstrip() + "\n"


def public_names(module: Any) -> list[str]:
    """What a module exports, or else the public classes and functions that it defines, in its order."""
    if hasattr(module, "__all__"):
        return [one for one in sorted(module.__all__) if not inspect.ismodule(getattr(module, one)) and one[0] != "_"]
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in own if not name.startswith("_")]


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield f"## {name}\n"
    yield f"{inspect.getdoc(module)}\n"
    for one in public_names(module) if NAMES[name] == "*" else NAMES[name].split():
        yield from _entry(f"{name}.{one}", getattr(module, one))


def _entry(path: str, value: Any) -> Iterator[str]:
    if not callable(value):
        yield f"### {path}\n\nA value: `{type(value).__name__}`.\n"
        return
    yield f"### {path}\n\n```text\n{signature(path.rpartition('.')[2], value)}\n```\n\n{_doc(value)}\n"
    own = vars(value).items() if inspect.isclass(value) and value.__module__.startswith("limbeck") else ()
    methods = [(name, method) for name, method in own if _is_method(name, method)]
    for name, method in methods:
        function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
        told = "" if isinstance(method, property) else signature("", function)
        first = (inspect.getdoc(method.fget if isinstance(method, property) else function) or "").split("\n\n")[0]
        yield f"- `{name}{' '.join(told.split())}`{':' if first else ''} {' '.join(first.split())}".rstrip()
    if methods:
        yield ""


def _is_method(name: str, value: object) -> bool:
    documented = isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
    return documented and not name.startswith(("_", "model_"))


def signature(name: str, value: Callable[..., Any]) -> str:
    """A signature as it is written. A class of pydantic has only its name: its keys have a page of their own."""
    if inspect.isclass(value) and "model_fields" in dir(value):
        return f"{name}(...)"
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"{name}(message)"
    made = inspect.signature(value)
    parameters = [one.replace(annotation=_written(one.annotation)) for one in made.parameters.values()]
    text = str(made.replace(parameters=parameters, return_annotation=_written(made.return_annotation)))
    text = re.sub(r"<factory>|<(?:<lambda>|[^<>])+ at 0x[0-9a-f]+>", "...", text)
    return f"{name}{text}" if len(name + text) <= 116 else f"{name}{_over_lines(text)}"


class _Written(str):
    """An annotation that is a string is shown without quotes."""

    __repr__ = str.__str__


def _written(annotation: Any) -> Any:
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    return _Written(text) if isinstance(text, str) else text


def _over_lines(text: str) -> str:
    """One parameter a line; commas within brackets stay."""
    inside, _, returns = text[1:].rpartition(")")
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(inside[start:place].strip())
            start = place + 1
    return "(\n" + "".join(f"    {part},\n" for part in [*parts, inside[start:].strip()]) + f"){returns}"


def _doc(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    return "" if text.startswith(f"{getattr(value, '__name__', '')}(") else text


# ---- errors ----------------------------------------------------------------------------------------------------------


def errors_markdown() -> str:
    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.LimbeckError)
    ]
    lines = [ERRORS, "| exit code | error | also a | raised when |", "|---|---|---|---|"]
    for one in classes[1:]:
        standard = next(base for base in one.__mro__ if base.__module__ == "builtins")
        first = inspect.cleandoc(one.__doc__ or "").split("\n\n")[0]
        link = f"[`{one.__name__}`](#{one.__name__.lower()})"
        lines.append(_row(one.exit_code, link, f"`{standard.__name__}`", first))
    for one in classes[1:]:
        first, _, advice = inspect.cleandoc(one.__doc__ or "").partition("\n\n")
        lines += ["", f"## {one.__name__}\n", f"{first}\n", advice]
    return "\n".join(lines) + "\n"


PAGES = {
    "recipe.md": recipe_markdown,
    "commands.md": commands_markdown,
    "python.md": python_markdown,
    "errors.md": errors_markdown,
}

if __name__ == "__main__":
    for file, make in PAGES.items():
        (REFERENCE / file).write_text(make(), encoding="utf-8")
