"""`limbeck route` on a real registry: fit, ask, the report, and what is refused."""

import json
import xml.dom.minidom
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import DataError, StoreError
from limbeck.experts.card import ExpertCard, PromptRow, Scope
from limbeck.experts.registry import Registry
from limbeck.router.from_registry import RouteChoice, ask_router, fit_router
from limbeck.router.frontier import RouteTarget
from limbeck.router.router import Router
from tests.router.routing import cases, prompts

runner = CliRunner()
COSTS = {"teacher": 4.0, "code": 1.0, "medical": 1.0, "maths": 1.0}


def add(registry: Registry, model, name: str, version: str = "1.0.0", **changes) -> None:
    rows = []
    for number, case in enumerate(cases((name,), train=40, heldout=40)):
        quality = {"expert": case.quality[name], "teacher": 1.0, "twin": 0.1} if case.quality else {}
        rows.append(PromptRow(str(number), case.split, case.prompt, "", quality))
    card = ExpertCard(scope=Scope(name), parameters=99, **changes)
    registry.add(name, version, card, model, prompts=rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    model = folder / "artifact"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\x80\x02" + bytes(300))
    registry = Registry(folder / "registry")
    for name in ("code", "medical", "maths"):
        add(registry, model, name)
    lines = [
        {"prompt": case.prompt, "domain": case.expert, "quality": {**case.quality, "midsize": 0.5}}
        for case in cases(train=40, heldout=40, cross=True)
        if case.quality
    ]
    lines.append({"prompt": "Bonjour", "domain": "french", "quality": {"code": 0.0}})
    (registry.path / "router").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (registry.path / "router" / "cross.jsonl").write_text(text)
    (folder / "outside.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts("music", 30)))
    said = []
    choice = RouteChoice(RouteTarget("cost", 0.6), COSTS, out_of_scope=folder / "outside.jsonl")
    report = fit_router(registry.path, choice, on_message=said.append)
    return folder, registry, model, report, said


@pytest.mark.slow
def test_the_folder_has_everything_and_keeps_what_was_given(made):
    _, registry, _, report, said = made
    router = registry.path / "router"
    names = {path.name for path in router.iterdir()}
    assert names == {
        *("router.json", "router.safetensors", "MANIFEST.json", "report.json", "report.html", "frontier.svg"),
        "cross.jsonl",
    }
    assert json.loads((router / "report.json").read_text()) == report
    assert report["costs"] == {"teacher": 1.0, "code": 0.25, "medical": 0.25, "maths": 0.25}
    assert report["routing"]["judged_elsewhere"] == 1.0 and report["routing"]["worst"] == 0.0
    assert report["scope"]["given"]["outside"] == 30 and report["scope"]["given"]["auroc"][0] > 0.95
    assert [text for text in said if "french" not in text] and any(
        "no expert that is routed to" in text for text in said
    )
    assert any(text.startswith("midsize was judged") for text in said)
    page = (router / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "") and "<script" not in page
    xml.dom.minidom.parseString((router / "frontier.svg").read_text())


def test_a_cost_limit_is_kept(made):
    routing = made[3]["routing"]
    assert routing["target"]["reached"] and routing["cost"][0] <= 0.6


def test_prompts_are_decided_on(made):
    _, registry, _, _, _ = made
    decision = ask_router(registry.path, prompts("medical", 1, seed=9)[0])
    assert max(decision.probabilities, key=decision.probabilities.get) == "medical"
    told = runner.invoke(app.app, ["route", "ask", str(registry.path), "When does the next ferry leave?"])
    assert told.exit_code == 0 and told.stdout.startswith("teacher: out of scope")
    told = runner.invoke(app.app, ["route", "ask", str(registry.path), "x", "--json"])
    assert json.loads(told.stdout)["expert"] is None


def test_a_rewritten_cross_file_does_not_break_the_router(made):
    _, registry, _, _, _ = made
    cross = registry.path / "router" / "cross.jsonl"
    text = cross.read_text()
    cross.write_text(text + "\n\n")
    assert Router.open(registry.path / "router").experts == ("code", "maths", "medical")
    cross.write_text('{"prompt": "x", "domain": "code", "quality": {"code": 7}}\n')
    with pytest.raises(DataError, match=r"cross.jsonl, line 1"):
        fit_router(registry.path, RouteChoice(costs=COSTS))
    cross.write_text(text)


def test_costs(made):
    folder, registry, _, _, _ = made
    with pytest.raises(DataError, match=r"--max-cost needs.*--cost code"):
        fit_router(registry.path, RouteChoice(RouteTarget("cost", 0.5)))
    with pytest.raises(DataError, match="above 0"):
        fit_router(registry.path, RouteChoice(costs={"teacher": 0.0}))
    with pytest.raises(DataError, match="no such expert here"):
        fit_router(registry.path, RouteChoice(costs={**COSTS, "cod": 1.0}))
    with pytest.raises(DataError, match=r"--generalist nobody.*code, maths, medical"):
        fit_router(registry.path, RouteChoice(costs=COSTS, generalists=("nobody",)))
    with pytest.raises(DataError, match="cannot be read"):
        fit_router(registry.path, RouteChoice(costs=COSTS, out_of_scope=folder / "missing.txt"))


@pytest.mark.slow
def test_costs_by_parameters_where_the_teachers_are_known(made, tmp_path):
    _, _, model, _, _ = made
    registry, said = Registry(tmp_path), []
    for name in ("code", "medical"):
        add(registry, model, name, teacher_parameters=396)
    report = fit_router(tmp_path, RouteChoice(RouteTarget("cost", 0.6)), on_message=said.append)
    assert report["costs"] == {"teacher": 1.0, "code": 0.25, "medical": 0.25}
    assert any("of the teacher's 396: code 0.25, medical 0.25" in line for line in said)


@pytest.mark.parametrize(
    "words", [["--quality", "1", "--max-cost", "1"], ["--cost", "code"], ["--cost", "=1"], ["--cost", "code=x"]]
)
def test_what_the_command_line_refuses(made, words):
    told = runner.invoke(app.app, ["route", "fit", str(made[1].path), *words])
    assert told.exit_code == 2


@pytest.mark.slow
def test_fitting_again_from_the_command_line(made):
    _, registry, model, _, _ = made
    add(registry, model, "music")
    with pytest.raises(StoreError, match="registry has changed since"):
        ask_router(registry.path, "x")
    words = ["route", "fit", str(registry.path), "--quality", "0.6", "--generalist", "music"]
    told = runner.invoke(app.app, words)
    assert told.exit_code == 0, told.output
    assert "told right" in told.stdout and "APGR" in told.stdout
    assert "What a prompt costs was not said" in told.stderr
    assert ask_router(registry.path, prompts("maths", 1, seed=4)[0]).expert in ("maths", None)
    report = json.loads((registry.path / "router" / "report.json").read_text())
    assert report["experts"] == ["code", "maths", "medical"] and set(report["fitted_on"]) == {
        *report["experts"],
        "music",
    }
    assert report["costs"]["code"] == 0.5


def test_hostile_names_and_notes_are_escaped(made):
    from limbeck.router.page import page

    report = json.loads(json.dumps(made[3]))
    report["notes"] = ["<script>alert(1)</script>\u202e"]
    report["experts"] = ["<b>", "x", "y"]
    report["routing"]["points"]["<img src=x>"] = [0.5, 0.5, 0.0, 0.0]
    text = page(report)
    assert "<script" not in text and "<img" not in text and "<b>" not in text and "\\u202e" in text


@pytest.mark.slow
def test_a_report_without_judged_prompts(made, tmp_path):
    _, _, model, _, _ = made
    registry = Registry(tmp_path / "other")
    for name in ("code", "maths"):
        rows = [
            PromptRow(str(at), case.split, case.prompt) for at, case in enumerate(cases((name,), train=30, heldout=20))
        ]
        registry.add(name, "1.0.0", replace(ExpertCard(scope=Scope(name)), parameters=1), model, prompts=rows)
    report = fit_router(registry.path, RouteChoice(costs={"teacher": 1.0, "code": 0.1, "maths": 0.1}))
    assert report["routing"] is None and not (registry.path / "router" / "frontier.svg").exists()
    assert "kind of a prompt alone decides" in (registry.path / "router" / "report.html").read_text()
