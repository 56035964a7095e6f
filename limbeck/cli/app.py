"""The command line: what can be asked of Limbeck.

Modules that load torch are imported inside the commands that need them: `limbeck --help` is instant.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli import experts, export, route, serve
from limbeck.cli import options as opt
from limbeck.cli.options import Json, Overrides, RecipeFile, RunDirOption, RunFolder
from limbeck.cli.terminal import error_text, print_error, print_result, show_log, steady_streams, watched
from limbeck.errors import LimbeckError, RecipeError
from limbeck.system.refusals import machine_errors
from limbeck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.config.problems import Problem
    from limbeck.config.yaml import Node
    from limbeck.recipe import Recipe

FAILED = 1
LOG_LEVELS = ("debug", "info", "warning", "error", "off")
NOISY = ("torchao", "torch.utils._pytree")
"""Loggers of libraries that warn on import, where transformers finds torchao, of kernels that this machine has not."""

app = typer.Typer(
    name="limbeck",
    help="Distil a large language model into a small one, and prove that it worked.",
    epilog=opt.EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
show_app = typer.Typer(help="Look into a run: what the teacher said, and what was done.", no_args_is_help=True)
app.add_typer(show_app, name="show", rich_help_panel="Look")
app.add_typer(experts.app, name="experts", rich_help_panel="Experts")
app.add_typer(route.app, name="route", rich_help_panel="Experts")


def main() -> None:
    """Entry point: user errors, and what the machine refuses, are printed without a traceback and end with their exit
    code."""
    steady_streams()
    # Before the libraries read them: their bars and warnings would mix with ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in NOISY:
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)  # torch resets levels
    try:
        with machine_errors():
            app(prog_name="limbeck")
    except LimbeckError as error:
        if "--json" in sys.argv:
            kind = type(error).__name__
            print_result({"error": {"type": kind, "message": str(error), "exit_code": error.exit_code}}, as_json=True)
        print_error(error_text(str(error)))
        sys.exit(error.exit_code)


# ---- commands on a recipe --------------------------------------------------------------------------------------------


def _load(path: Path, overrides: list[str] | None) -> tuple[Recipe, Node]:
    from limbeck.recipe.recipe import load_with_origins

    return load_with_origins(path, overrides or [])


def _sound(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe, without contradictions; problems are told with file and line."""
    from limbeck.config.load import origin_of
    from limbeck.recipe.rules.check import check_static, raise_problems

    recipe, written = _load(path, overrides)
    raise_problems(check_static(recipe), lambda where: origin_of(written, where))
    return recipe


@contextlib.contextmanager
def _opened(
    path: Path, overrides: list[str] | None, run_dir: Path | None
) -> Iterator[tuple[Path, Callable[..., dict[str, Any]]]]:
    """A recipe's run folder, and `run_recipe` for both with its progress shown. The command calls it: from there to the
    loss are few frames."""
    recipe = _sound(path, overrides)
    folder = run_dir or Path("runs") / recipe.name
    with watched() as (on_progress, on_message):
        from limbeck.pipeline.run import run_recipe

        yield folder, partial(run_recipe, recipe, folder, on_progress=on_progress, on_message=on_message)


def _print_summary(summary: dict[str, Any], folder: Path, as_json: bool, last: str = "") -> None:
    if as_json:
        print_result({"run": str(folder), **summary}, as_json=True)
        return
    from limbeck.cli.tables import result

    print_result(result(summary))
    print_result(f"\n{last or f'run folder: {folder}'}")


@app.command(rich_help_panel="Start")
def init(
    teacher: Annotated[
        str, typer.Option(help="hub id, folder, .gguf file, or the demo's smollm2-135m")
    ] = "smollm2-135m",
    student: Annotated[str | None, typer.Option(help="start from this model: hub id or folder")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="prune the teacher to this many layers")] = None,
    parameters: Annotated[str | None, typer.Option(help="build a new model of this size, such as 17M")] = None,
    data: Annotated[str, typer.Option(help="file, folder, glob, dataset name, or stdlib (the demo's)")] = "stdlib",
    mode: Annotated[str, typer.Option(help="score: the teacher reads the text; generate: it writes replies")] = "score",
    preset: Annotated[str | None, typer.Option(help="r1: reasoning traces into --student, rates by its size")] = None,
    out: Annotated[str, typer.Option(help="file to write; - is stdout")] = "recipe.yaml",
    force: Annotated[bool, typer.Option("--force", help="replace a file that exists")] = False,
) -> None:
    """Write a commented recipe for your case.

    Example: limbeck init --data chats.jsonl --layers 20
    """
    from limbeck.pipeline.init import InitChoice, recipe_text, write_recipe

    if mode not in ("score", "generate"):
        raise typer.BadParameter(f"--mode is {mode!r}; it must be score or generate")
    if preset not in (None, "r1"):
        raise typer.BadParameter(f"--preset is {preset!r}; it must be r1")
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(out).stem.lower()).strip("-._")[:64] or "distilled"
    text = recipe_text(InitChoice(teacher, data, mode, student, layers, parameters, name, preset))
    if out == "-":
        print_result(text.removesuffix("\n"))
        return
    write_recipe(text, Path(out), force=force)
    print_result(f"wrote {out}. Next: limbeck check {out}")


@app.command(rich_help_panel="Start")
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option(help="measure for a few seconds what each stage will cost")] = True,
    as_json: Json = False,
) -> None:
    """Prove a recipe before any work, and estimate its costs.

    Example: limbeck check my.yaml
    """
    from limbeck.config.load import origin_of

    loaded, written = _load(recipe, overrides)
    with watched() as (on_progress, _):
        from limbeck.check.recipe import check_recipe

        found = check_recipe(loaded, estimate=estimate, on_progress=on_progress)

    def told(problem: Problem) -> dict[str, str]:
        return {"origin": origin_of(written, problem.where), **asdict(problem)}

    problems = [told(problem) for problem in found.problems]
    warnings = [told(warning) for warning in found.warnings]
    if as_json:
        requests = asdict(found.requests) if found.requests else None
        payload = {"problems": problems, "warnings": warnings, "facts": found.facts, "estimate": found.estimate}
        print_result({**payload, "requests": requests}, as_json=True)
    else:
        from limbeck.cli.tables import check_facts

        print_result(check_facts(found))
        for warning in warnings:
            print_error("warning: {origin}: {message}".format(**warning))
        for problem in problems:
            print_error(error_text("{origin}: {message}".format(**problem)))
        print_result(f"\n{len(problems)} problems" if problems else "\nno problems")
    if problems:
        raise typer.Exit(RecipeError.exit_code)


@app.command(rich_help_panel="Start")
def selftest(
    teacher: Annotated[str, typer.Option(help="hub id, folder, .gguf file, or smollm2-135m", show_default=False)],
    student: Annotated[
        str | None, typer.Option(help="hub id or folder; without one, the teacher with a little noise in its weights")
    ] = None,
    rows: opt.TestRows = None,
    divergence: Annotated[str | None, typer.Option(help="only this one, such as jsd (default: all)")] = None,
    dtype: Annotated[str, typer.Option(help="the teacher's: auto, float32, bfloat16 or float16")] = "float32",
    trust_remote_code: opt.TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure on your own pair of models that losses, targets and positions are right.

    Example: limbeck selftest --teacher smollm2-135m --student runs/my/student

    Every statement is measured through the code that trains, and told with its bound. A failure names the statement.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype is {dtype!r}; it must be auto, float32, bfloat16 or float16")
    with watched() as (on_progress, _):
        from limbeck.selftest.run import SelfTestChoice, run_selftest

        choice = SelfTestChoice(rows, divergence, dtype, trust_remote_code)
        found = run_selftest(teacher, student, choice=choice, on_progress=on_progress)
    if as_json:
        print_result(found.to_json(), as_json=True)
    else:
        from limbeck.cli.tables import statements

        print_result(statements(found))
    if found.failed:
        print_error(error_text(f"these statements do not hold: {', '.join(found.failed)}"))
        raise typer.Exit(FAILED)


@app.command(rich_help_panel="Work")
def label(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDirOption = None, as_json: Json = False) -> None:
    """Read the data and store what the teacher says.

    Example: limbeck label my.yaml trace.target.kind=top_k
    """
    with _opened(recipe, overrides, run_dir) as (folder, run_until):
        summary = run_until(until="label")
    _print_summary(summary, folder, as_json)


@app.command(rich_help_panel="Work")
def train(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDirOption = None, as_json: Json = False) -> None:
    """Train the student, and its hard-label twin where asked for.

    Example: limbeck train my.yaml train.twin=true
    """
    with _opened(recipe, overrides, run_dir) as (folder, run_until):
        summary = run_until(until="twin")
    _print_summary(summary, folder, as_json)


@app.command(rich_help_panel="Work")
def evaluate(
    recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDirOption = None, as_json: Json = False
) -> None:
    """Compare teacher, student and twin on held-out rows.

    Example: limbeck evaluate my.yaml
    """
    with _opened(recipe, overrides, run_dir) as (folder, run_until):
        summary = run_until(until="evaluate")
    _print_summary(summary, folder, as_json)


@app.command(rich_help_panel="Work")
def run(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDirOption = None, as_json: Json = False) -> None:
    """Everything, up to the verdict and the report.

    Example: limbeck run my.yaml
    """
    with _opened(recipe, overrides, run_dir) as (folder, run_until):
        summary = run_until(until="report")
    _print_summary(summary, folder, as_json, last=f"report: {folder / 'report.html'}")


@app.command(rich_help_panel="Look")
def report(
    recipe: opt.RecipeOrRun,
    overrides: Overrides = None,
    run_dir: RunDirOption = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a finished run anew, from its files.

    Example: limbeck report runs/my
    """
    folder = recipe
    if run_dir or not recipe.is_dir():
        folder = run_dir or Path("runs") / _load(recipe, overrides)[0].name
    from limbeck.report.page import run_report

    path = str(run_report(folder))
    print_result({"report": path} if as_json else f"report: {path}", as_json=as_json)


@app.command(rich_help_panel="Look")
def review(
    folder: RunFolder,
    out: opt.ReviewFile = Path("review.csv"),
    most: opt.ReviewMost = None,
    as_json: Json = False,
) -> None:
    """What curation kept and left out, and why.

    Example: limbeck review runs/my --out review.html
    """
    from limbeck.curate.review import review as write_review

    shown, count = write_review(folder, out, most)
    told = f"{shown} of {count} replies: {out}"
    print_result({"review": str(out), "replies": count, "written": shown} if as_json else told, as_json=as_json)


@app.command(rich_help_panel="Work")
def capture(
    upstream: opt.UpstreamOption,
    store: opt.Store,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 8100,
    allow_remote: opt.AllowRemote = False,
    sample: opt.SampleOption = 1.0,
    redact: opt.Redact = ["all"],  # noqa: B006  (typer copies it)
    tag: opt.Tag = [],  # noqa: B006
    max_bytes: opt.MaxBytes = None,
    as_json: Json = False,
) -> None:
    """Record production traffic: a proxy in front of an OpenAI-compatible endpoint, until it is stopped.

    Example: limbeck capture --upstream https://api.openai.com --store traffic --tag app=helpdesk
    """
    from limbeck.capture import CaptureSettings
    from limbeck.capture.run import run_capture

    told = {"allow_remote": allow_remote, "sample": sample, "redact": tuple(redact), "max_bytes": max_bytes}
    settings = CaptureSettings(upstream, store, host, port, tags=opt.tag_pairs(tag), **told)
    status = run_capture(settings, on_message=print_error)
    if as_json:
        print_result(status, as_json=True)


app.command(rich_help_panel="Experts")(export.export)
app.command(rich_help_panel="Experts")(serve.serve)


# ---- looking ---------------------------------------------------------------------------------------------------------


@show_app.command("traces")
def show_traces(
    folder: RunFolder,
    row: Annotated[int, typer.Option(min=0, help="number of the row, from 0")] = 0,
    id: Annotated[str | None, typer.Option("--id", help="id of the trace or row, or how it begins")] = None,
    top: Annotated[int, typer.Option(min=1, help="alternatives shown per token")] = 5,
    as_json: Json = False,
) -> None:
    """What the teacher said, token by token, with its alternatives.

    Example: limbeck show traces runs/my --row 3
    """
    from limbeck.cli.tables import trace
    from limbeck.pipeline.show import show_trace

    view = show_trace(folder, row=row, id=id, top=top)
    print_result(asdict(view) if as_json else trace(view), as_json=as_json)


@show_app.command("run")
def show_run(folder: RunFolder, as_json: Json = False) -> None:
    """Stages, fingerprints, times, sizes and scores of a run.

    Example: limbeck show run runs/my
    """
    from limbeck.cli import tables
    from limbeck.pipeline import show

    view = show.show_run(folder)
    print_result(asdict(view) if as_json else tables.run(view), as_json=as_json)


@app.command(rich_help_panel="Look")
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="print the reference for people instead")] = False,
) -> None:
    """Print the JSON schema of a recipe, for editors.

    Example: limbeck schema > recipe.schema.json
    """
    if markdown:
        from limbeck.recipe.reference import recipe_markdown

        print_result(recipe_markdown().removesuffix("\n"))
        return
    from limbeck.recipe import Recipe

    print_result(Recipe.model_json_schema(), as_json=True)


def _version(wanted: bool) -> None:
    if wanted:
        print_result(f"limbeck {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    log_level: Annotated[
        str,
        typer.Option(
            envvar="LIMBECK_LOG_LEVEL",
            help="what is logged on stderr: debug, info (retries, skips, fallbacks, what is slow), warning, error, off",
        ),
    ] = "warning",
) -> None:
    if log_level not in LOG_LEVELS:
        raise typer.BadParameter(f"--log-level is {log_level!r}; it must be {', '.join(LOG_LEVELS)}")
    show_log(log_level)
    context.call_on_close(lambda: show_log("off"))
