"""`limbeck experts`: what each command says, on stdout and as JSON, and its exit codes."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import ExpertError, TeacherError
from limbeck.experts import Registry
from limbeck.experts import add as job
from limbeck.experts import verify as verifying
from limbeck.experts.verify import Rescored, Verification
from tests.experts.conftest import ROWS, make_card, model  # noqa: F401  (a fixture)

runner = CliRunner()
SCORES = {
    "student": {"agreement": {"value": 0.625, "low": 0.5, "high": 0.75, "n": 20}},
    "teacher": {"perplexity": {"value": 9.5, "low": 9.0, "high": 10.0, "n": 20}},
}
EVIL = "</td>\x1b[2J[bold]x[/bold]<script>`*|"


@pytest.fixture
def registry(tmp_path, model):  # noqa: F811
    registry = Registry(tmp_path / "registry")
    registry.add("notes", "1.0.0", make_card(EVIL, scores=SCORES, notes=(EVIL,), teacher=EVIL), model, prompts=ROWS)
    registry.add("notes", "1.1.0", make_card(scores=SCORES), model)
    return registry


def run(*words):
    return runner.invoke(app.app, ["experts", *map(str, words)])


def test_list_shows_versions_scores_and_damage(registry):
    (registry.expert("notes", "1.1.0").path / "expert.json").write_text("{}")
    out = run("list", registry.path)
    assert out.exit_code == 0 and "62.5%" in out.output and "1.0.0" in out.output
    assert "notes 1.1.0 is damaged: expert.json has 2 bytes" in " ".join(out.output.split())
    assert "\x1b" not in out.output and "\\x1b[2J" in out.output
    told = json.loads(run("list", registry.path, "--json").output)
    assert [line["version"] for line in told["experts"]] == ["1.0.0"] and list(told["damaged"]) == ["notes/1.1.0"]
    assert told["experts"][0]["scores"] == SCORES


def test_show_tells_everything_and_trusts_nothing(registry):
    out = run("show", registry.path, "notes", "--version", "1.0.0")
    assert out.exit_code == 0 and "62.5% (50.0% to 75.0%)" in out.output and "prompts: 1 train, 1 heldout" in out.output
    assert "\x1b" not in out.output and "[bold]x[/bold]" in out.output
    card = json.loads(run("show", registry.path, "notes", "--json").output)
    assert card["version"] == "1.1.0" and card["scope"]["languages"] == ["en"]


def test_the_page_is_neither_html_nor_markdown_of_others(registry):
    page = (registry.expert("notes", "1.0.0").path / "README.md").read_text()
    body = page.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<script\\>", "") and "\x1b" not in page
    assert "| top-1 agreement with the teacher |  | 62.5% (50.0% to 75.0%) |" in body


def test_remove_needs_a_version_that_exists(registry):
    assert run("remove", registry.path, "notes").exit_code == 2
    out = run("remove", registry.path, "notes", "--version", "3.0.0")
    assert isinstance(out.exception, ExpertError) and "its versions: 1.0.0, 1.1.0" in str(out.exception)
    assert run("remove", registry.path, "notes", "--version", "1.1.0").output == "removed notes 1.1.0\n"
    assert registry.versions("notes") == ["1.0.0"]


@pytest.mark.parametrize(("value", "code"), [(0.6, 0), (0.9, 1)])
def test_verify_ends_with_1_when_a_score_is_not_reproduced(value, code, registry, monkeypatch):
    score = Rescored("agreement", value, 0.625, 0.5, 0.75)
    found = Verification("notes", "1.1.0", True, 20, ("a",), 20, (score,), ("kl",))
    monkeypatch.setattr(job, "verify_expert", lambda expert, on_progress: found)
    out = run("verify", registry.path, "notes")
    assert out.exit_code == code and "19 of 20 greedy answers are equal" in out.output
    assert ("NOT AS ITS CARD SAYS" in out.output) is bool(code)
    told = json.loads(run("verify", registry.path, "--json").stdout)
    assert told["experts"][0]["holds"] is (not code) and told["damaged"] == {}


def test_verify_goes_on_after_one_that_cannot_be_opened(registry, model, monkeypatch):  # noqa: F811
    registry.add("code", "1.0.0", make_card(), model)
    (registry.expert("notes").path / "README.md").unlink()

    def broken(*_args, **_kwargs):
        raise TeacherError("no model here")

    monkeypatch.setattr(verifying, "open_lm", broken)
    out = run("verify", registry.path, "--json")
    told = json.loads(out.stdout)
    assert out.exit_code == 1 and told["experts"] == []
    assert set(told["damaged"]) == {"code/1.0.0", "notes/1.0.0", "notes/1.1.0"}
    assert "no model here" in told["damaged"]["code/1.0.0"]
    alone = run("verify", registry.path, "--version", "1.0.0")
    assert isinstance(alone.exception, ExpertError) and "needs the NAME" in str(alone.exception)


@pytest.mark.slow
def test_looking_needs_no_torch_and_errors_have_their_exit_code(registry):
    code = (
        "import sys; sys.argv = ['limbeck', 'experts', 'list', {!r}]\ntry:\n import limbeck.cli; limbeck.cli.main()\n"
    )
    code += "finally:\n print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code.format(str(registry.path))], capture_output=True, text=True)
    assert out.stdout.strip().endswith("False"), out.stderr
    words = [sys.executable, "-m", "limbeck", "experts", "show", str(registry.path), "nobody", "--json"]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 14 and json.loads(failed.stdout)["error"]["type"] == "ExpertError"
    assert "there are: notes" in failed.stderr and "Traceback" not in failed.stderr
