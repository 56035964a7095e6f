"""The command line: exit codes, what goes where, and what a job is called with."""

import errno
import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from limbeck import errors
from limbeck.cli import app
from limbeck.errors import StoreError
from limbeck.recipe import Recipe
from limbeck.types import Progress
from tests.recipes import TEXT

ROOT = Path(__file__).parents[2]
runner = CliRunner()
SUMMARY = {"name": "tiny", "student": {"kl": 0.5}, "verdict": {"sentence": "It helped."}, "stages": {}}


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return "tiny.yaml"


@pytest.fixture
def job(monkeypatch):
    """A stand-in for jobs.run that notes how it was called."""
    calls = []

    def run_recipe(recipe, run_dir, *, until, on_progress, on_message):
        calls.append((recipe, run_dir, until))
        on_message("a message \x1b[2J")
        for done in range(0, 101, 10):
            on_progress(Progress("train", done, 100, "tokens", 50.0, 2.0, {"loss": 1.25}))
        return SUMMARY

    monkeypatch.setitem(sys.modules, "limbeck.pipeline.run", types.SimpleNamespace(run_recipe=run_recipe))
    return calls


def limbeck(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "limbeck", *args], capture_output=True, text=True, **kwargs)


def test_help_reads_well_and_loads_nothing_heavy():
    code = "import sys; sys.argv = ['limbeck', '--help']\ntry:\n import limbeck.cli.app; limbeck.cli.app.main()\n"
    code += "finally:\n print('torch' in sys.modules, 'transformers' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False False False")
    for word in (
        "init",
        "check",
        "label",
        "train",
        "evaluate",
        "report",
        "run",
        "show",
        "schema",
        "limbeck check my.yaml",
    ):
        assert word in out


def test_version():
    assert runner.invoke(app.app, ["--version"]).output == "limbeck 0.1.0\n"


@pytest.mark.parametrize(
    ("verb", "until"), [("label", "label"), ("train", "twin"), ("evaluate", "evaluate"), ("run", "report")]
)
def test_jobs(recipe_file, job, verb, until):
    out = runner.invoke(app.app, [verb, recipe_file, "seed=7", "train.budget.tokens=5"])
    assert out.exit_code == 0, out.output
    recipe, run_dir, asked = job[0]
    assert isinstance(recipe, Recipe)
    assert (recipe.seed, recipe.train.budget.tokens) == (7, 5)  # pyright: ignore[reportAttributeAccessIssue]
    assert (str(run_dir), asked) == ("runs/tiny", until)
    assert "It helped." in out.stdout
    assert "a message \\x1b[2J" in out.stderr


def test_plain_progress_lines_are_few(recipe_file, job):
    out = runner.invoke(app.app, ["run", recipe_file])
    lines = [line for line in out.stderr.splitlines() if line.startswith("train ")]
    assert lines == [
        "train      0% of 100 tokens  50 tokens/s  loss 1.25  2.0 s left",
        "train    100% of 100 tokens  50 tokens/s  loss 1.25",
    ]


def test_json(recipe_file, job):
    out = runner.invoke(app.app, ["run", recipe_file, "--json", "--run-dir", "elsewhere"])
    assert json.loads(out.stdout) == {"run": "elsewhere", **SUMMARY}
    assert str(job[0][1]) == "elsewhere"


def test_other_ranks_are_silent(recipe_file, job, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    out = runner.invoke(app.app, ["run", recipe_file])
    assert (out.stdout, out.stderr, out.exit_code) == ("", "", 0)


def test_contradictions_stop_a_job_before_it_starts(recipe_file, job, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["limbeck", "run", recipe_file, "train.optimizer.betas=[1, 1]", "student.keep=[0]"]
    )
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 3
    assert job == []
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: tiny.yaml:5: student has both `layers` and `keep`")
    assert lines[1].startswith("       override train.optimizer.betas=[1, 1]: train.optimizer.betas is [1.0, 1.0]")


@pytest.mark.parametrize("as_json", [False, True])
def test_user_errors_have_no_traceback(recipe_file, monkeypatch, capsys, as_json):
    def run_recipe(*_args, **_kwargs):
        raise StoreError("shard 3 is damaged \x1b[2J")

    monkeypatch.setitem(sys.modules, "limbeck.pipeline.run", types.SimpleNamespace(run_recipe=run_recipe))
    monkeypatch.setattr(sys, "argv", ["limbeck", "run", recipe_file, *["--json"] * as_json])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 7
    out = capsys.readouterr()
    assert out.err == "error: shard 3 is damaged \\x1b[2J\n"
    if as_json:
        assert json.loads(out.out)["error"]["type"] == "StoreError"
    else:
        assert out.out == ""


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["rnu"], 2, "Did you mean 'run'?"),
        (["run"], 2, "Missing argument"),
        (["run", "tiny.yaml", "other.yaml"], 2, "is not KEY=VALUE"),
        (["run", "tiny.yaml", "--runs", "x"], 2, "No such option"),
        (["init", "--mode", "sing"], 2, "score or generate"),
        (["run", "none.yaml"], 3, "error: there is no recipe none.yaml (. has tiny.yaml)"),
        (["check", "tiny.yaml", "sead=1"], 3, "Did you mean seed?"),
    ],
)
def test_exit_codes(recipe_file, tmp_path, args, code, message):
    out = limbeck(*args, cwd=tmp_path, env=_env())
    assert out.returncode == code
    assert message in " ".join(out.stderr.replace("│", " ").split())
    assert "Traceback" not in out.stderr


def _env() -> dict[str, str]:
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2]), "OMP_NUM_THREADS": "1"}


INTERRUPTED = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
def run_recipe(*args, **kwargs):
    print("working", flush=True)
    time.sleep(60)
sys.modules["limbeck.pipeline.run"] = types.SimpleNamespace(run_recipe=run_recipe)
sys.argv = ["limbeck", "run", "tiny.yaml"]
import limbeck.cli
limbeck.cli.app.main()
"""


def test_ctrl_c(recipe_file, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,
        env=_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert err == "interrupted. What was finished is kept; run the same command again to go on.\n"


def test_init(recipe_file, tmp_path):
    out = runner.invoke(app.app, ["init", "--out", "My Recipe.yaml", "--layers", "3", "--data", "a.jsonl"])
    assert out.stdout == "wrote My Recipe.yaml. Next: limbeck check My Recipe.yaml\n"
    recipe = Recipe.load(tmp_path / "My Recipe.yaml")
    assert (recipe.name, recipe.student.kind, recipe.data.source.kind) == ("my-recipe", "prune", "files")
    again = runner.invoke(app.app, ["init", "--out", "My Recipe.yaml"])
    assert "exists already" in str(again.exception)
    assert runner.invoke(app.app, ["init", "--out", "My Recipe.yaml", "--force"]).exit_code == 0
    assert yaml.safe_load(runner.invoke(app.app, ["init", "--out", "-"]).stdout)["name"] == "distilled"


def test_report_takes_a_recipe_or_a_run(recipe_file, tmp_path, monkeypatch):
    seen = []
    fake = types.SimpleNamespace(run_report=lambda folder: seen.append(str(folder)) or folder / "report.html")
    monkeypatch.setitem(sys.modules, "limbeck.report.page", fake)
    (tmp_path / "somewhere").mkdir()
    assert "somewhere/report.html" in runner.invoke(app.app, ["report", "somewhere"]).stdout
    assert json.loads(runner.invoke(app.app, ["report", recipe_file, "--json"]).stdout) == {
        "report": "runs/tiny/report.html"
    }
    runner.invoke(app.app, ["report", recipe_file, "--run-dir", "x"])
    assert seen == ["somewhere", "runs/tiny", "x"]


def test_check_tells_problems_with_their_origin(recipe_file, monkeypatch):
    from limbeck.config.problems import problem
    from limbeck.label.request_cost import RequestCost

    found = types.SimpleNamespace(
        problems=[problem("student.layers", "is 2, too many.")],
        warnings=[problem("train.budget", "is doubtful.")],
        facts=["context of 8 tokens"],
        estimate={},
        requests=None,
    )
    asked = []
    fake = types.SimpleNamespace(check_recipe=lambda _recipe, *, estimate, on_progress: asked.append(estimate) or found)
    monkeypatch.setitem(sys.modules, "limbeck.check.recipe", fake)
    out = runner.invoke(app.app, ["check", recipe_file, "--no-estimate"])
    assert out.exit_code == 3
    assert "- context of 8 tokens" in out.stdout
    assert "error: tiny.yaml:5: student.layers is 2, too many." in out.stderr
    data = json.loads(runner.invoke(app.app, ["check", recipe_file, "--json"]).stdout)
    assert data["problems"][0] == {
        "origin": "tiny.yaml:5",
        "where": "student.layers",
        "message": "student.layers is 2, too many.",
    }
    assert "warning: tiny.yaml:7: train.budget is doubtful." in out.stderr
    assert data["warnings"][0]["where"] == "train.budget"
    assert asked == [False, True]
    found.problems.clear()
    found.estimate["label"] = {"seconds": 60.0, "peak_bytes": 2**30, "disk_bytes": 2**20}
    sound = runner.invoke(app.app, ["check", recipe_file])
    assert sound.exit_code == 0
    assert "no problems" in sound.stdout
    assert "1 min 00 s" in sound.stdout
    found.requests = RequestCost(3, 40, 60, 8, 16, 0.5, 1.25, "EUR", 90.0)
    assert "1.25 EUR" in runner.invoke(app.app, ["check", recipe_file]).stdout
    assert json.loads(runner.invoke(app.app, ["check", recipe_file, "--json"]).stdout)["requests"]["cost_most"] == 1.25


def test_schema():
    schema = json.loads(runner.invoke(app.app, ["schema"]).stdout)
    assert "student" in schema["properties"]
    assert runner.invoke(app.app, ["schema", "--markdown"]).stdout.startswith("# Recipe reference")


# ---- how a command ends ----------------------------------------------------------------------------------------------

# Scripts rely on these numbers: a code is never given to another error.
CODES = {
    "LimbeckError": 1,
    "CaptureError": 2,
    "RecipeError": 3,
    "TeacherError": 4,
    "UnalignedTokens": 4,
    "BudgetError": 5,
    "DataError": 6,
    "EmptyRow": 6,
    "LongRow": 6,
    "UnsupervisedRow": 6,
    "StoreError": 7,
    "RunDirError": 8,
    "NonFiniteError": 9,
    "MissingExtra": 10,
    "SandboxError": 11,
    "ExportError": 12,
    "EngineError": 13,
    "EngineFull": 13,
    "ExpertError": 14,
    "Stopped": 75,
}
REFUSED = [
    (OSError(errno.ENOSPC, "No space left on device", "x"), 5),
    (Exception("No space left on device (os error 28)"), 5),
    (MemoryError("malloc of size 64 failed"), 5),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5),
    (OSError(errno.EMFILE, "Too many open files"), 5),
    (OSError(errno.EIO, "Input/output error", "x"), 8),
    (OSError(errno.EROFS, "Read-only file system", "x"), 8),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 8),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 100_000), 3),
]


def raised_by_a_command(error, monkeypatch, capsys) -> tuple[int, str]:
    def command(**_):
        raise error

    monkeypatch.setattr(app, "app", command)
    monkeypatch.setattr(sys, "argv", ["limbeck", "schema"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return ended.value.code, capsys.readouterr().err  # type: ignore[return-value]


def test_exit_codes_are_those_of_the_docs(monkeypatch, capsys):
    known = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and name in CODES}
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert ours == set(CODES) == set(known)
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for name, code in CODES.items():
        error = errors.MissingExtra("a", "b", "c") if name == "MissingExtra" else known[name]("what to do next")
        assert raised_by_a_command(error, monkeypatch, capsys) == (code, f"error: {error}\n")
        assert name == "LimbeckError" or f"| {code} | [`{name}`]" in page


@pytest.mark.parametrize(("error", "code"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_machine_refuses_ends_every_command_with_a_sentence(error, code, monkeypatch, capsys):
    ended, said = raised_by_a_command(error, monkeypatch, capsys)
    assert ended == code and said.startswith("error: ") and len(said) < 700


def test_words_without_an_end_are_cut(monkeypatch, capsys):
    _, said = raised_by_a_command(errors.RunDirError(f"{'r' * 100_000} is in use."), monkeypatch, capsys)
    assert said.endswith("... (100,000 characters) is in use.\n") and len(said) < 300


def test_a_defect_is_no_refusal(monkeypatch, capsys):
    monkeypatch.setattr(app, "app", lambda **_: {}["no"])
    with pytest.raises(KeyError):
        app.main()
