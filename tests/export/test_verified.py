"""Exports: whole or not at all, judged before they get their name, and done once."""

import json
import random
import shutil
import signal

import pytest
import torch
from safetensors import safe_open

import limbeck
from limbeck.errors import ExportError, RecipeError, RunDirError, StoreError, TeacherError
from limbeck.export import verified as module
from limbeck.export.command import ExportChoice, default_folder, find_source, judged_on, run_export
from limbeck.export.verified import export_artifact
from limbeck.models.artifact import read_artifact, read_card
from limbeck.models.open import open_hf
from limbeck.pipeline.run import run_recipe
from limbeck.recipe import Recipe, make_export
from limbeck.system.atomic import sha256_file, verify_dir
from tests import tiny
from tests.pipeline.killed import run_until_killed

EXPORTS = [{"kind": "safetensors", "quant": "int8"}, {"kind": "safetensors", "quant": "float16"}]


def recipe_of(model, file, **changes) -> Recipe:
    tree = {
        "name": "tiny",
        "scope": "Continues short notes.",
        "teacher": {"path": str(model)},
        "data": {
            "source": {"kind": "files", "path": str(file), "text": "text", "topic": "topic"},
            "max_length": 48,
            "holdout": 0.25,
        },
        "student": {"kind": "prune", "layers": 2},
        "train": {"budget": {"kind": "steps", "steps": 2}, "batch_tokens": 200, "precision": "float32"},
        "evaluate": {"answers": 0, "bootstrap": 50},
        "export": EXPORTS,
        **changes,
    }
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def finished(tiny_llama, text_jsonl, tmp_path_factory):
    """A whole run with exports and an estimate."""
    run = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(tiny_llama, text_jsonl)
    return recipe, run, run_recipe(recipe, run)


@pytest.fixture
def judged(tiny_llama):
    return judged_on(open_hf(tiny_llama, dtype="float32"), None, None)


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_exports_its_student(finished):
    _, run, summary = finished
    assert [(one["format"], one["quant"]) for one in summary["exports"]] == [
        ("safetensors", "int8"),
        ("safetensors", "float16"),
    ]
    for one in summary["exports"]:
        assert 0 < one["kl"] <= one["kl_bound"] and one["text"] == "held-out rows" and one["positions"] > 100
        assert one["bytes"] < one["source_bytes"]
    assert summary["stages"]["export"]["estimated"].keys() == {"seconds", "peak_bytes", "disk_bytes"}
    student, export = limbeck.open_lm(run / "train/student/artifact"), limbeck.open_lm(run / "export/safetensors-int8")
    assert export.tokenizer_hash == student.tokenizer_hash and export.fingerprint != student.fingerprint
    card = read_card(run / "export/safetensors-int8")
    assert card.scope == "Continues short notes." and card.lineage[-1] == "exported to safetensors int8"
    assert card.scores == read_card(run / "train/student/artifact").scores and card.scores["student"]["kl"] > 0
    page = (run / "export/safetensors-int8/README.md").read_text()
    assert "# tiny (safetensors int8)" in page and "on held-out rows" in page and "base_model" not in page
    assert read_artifact(run / "export/safetensors-float16").format == "safetensors"
    report = (run / "report.html").read_text()
    assert "<h2>Exports</h2>" in report and "safetensors int8" in report


@pytest.mark.slow
def test_nothing_is_exported_twice(finished, tmp_path):
    recipe, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run/export").rglob("*.safetensors")}
    messages: list[str] = []
    run_recipe(recipe, tmp_path / "run", estimate=False, on_message=messages.append)
    assert "export: nothing changed, skipped" in messages
    more = recipe.override("export=[{kind: safetensors, quant: int8}, {kind: safetensors, quant: bfloat16}]")
    run_recipe(more, tmp_path / "run", estimate=False, on_message=messages.append)
    assert [text for text in messages if text.startswith("exporting")] == ["exporting to safetensors bfloat16"]
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    names = [one["name"] for one in json.loads((tmp_path / "run/summary.json").read_text())["exports"]]
    assert names == ["safetensors-int8", "safetensors-bfloat16"]


@pytest.mark.slow
def test_a_damaged_export_is_made_again(finished, tmp_path):
    recipe, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/export/safetensors-float16/model.safetensors"
    good = sha256_file(file)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    (tmp_path / "run/stages/export.json").unlink()
    messages: list[str] = []
    run_recipe(recipe, tmp_path / "run", estimate=False, on_message=messages.append)
    assert [text for text in messages if text.startswith("exporting")] == ["exporting to safetensors float16"]
    assert sha256_file(file) == good


@pytest.mark.slow
def test_a_tighter_bound_fails_the_stage_and_keeps_the_rest(finished, tmp_path):
    recipe, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    tight = recipe.override("export=[{kind: safetensors, quant: int8, max_kl: 1.0e-9}]")
    with pytest.raises(ExportError, match=r"KL \d.* at most 1e-09 is allowed.*Nothing was kept.*max_kl="):
        run_recipe(tight, tmp_path / "run", estimate=False)
    assert verify_dir(tmp_path / "run/train/student/artifact") is None
    assert verify_dir(tmp_path / "run/export/safetensors-int8") is None, "the earlier one met its own bound"
    run_recipe(recipe, tmp_path / "run", estimate=False)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "seed"), [("fsync", 0), ("export", 2)])
def test_killed_at_any_moment_no_half_export_is_there(finished, tmp_path, at, seed):
    recipe, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/export")
    (tmp_path / "run/stages/export.json").unlink()
    rng, codes = random.Random(seed), []
    for _ in range(3):
        count = rng.randint(2, 25) if at == "fsync" else rng.randint(1, 8)
        codes.append(run_until_killed(recipe, tmp_path / "run", at=at, count=count, until="export"))
        for folder in (tmp_path / "run/export").glob("[!.]*-*"):
            assert verify_dir(folder, alone=True) is None
            assert read_card(folder).parity is not None
    assert codes.count(-signal.SIGKILL) >= 2 and set(codes) <= {0, -signal.SIGKILL}
    assert run_until_killed(recipe, tmp_path / "run", until="export") == 0
    for name in ("safetensors-int8", "safetensors-float16"):
        file = f"export/{name}/model.safetensors"
        assert sha256_file(tmp_path / "run" / file) == sha256_file(run / file)
    assert not list((tmp_path / "run/export").glob(".*"))


# ---- one export ------------------------------------------------------------------------------------------------------


def test_any_model_is_exported_with_a_card_of_its_own(tiny_llama, judged, tmp_path):
    made = export_artifact(tiny_llama, tmp_path / "out", make_export("safetensors", "bfloat16", None), judged)
    assert made == read_artifact(tmp_path / "out")
    card = read_card(tmp_path / "out")
    assert (card.quant, card.role, card.recipe_yaml) == ("bfloat16", "model", "")
    assert card.parity is not None and card.parity["text"] == "built-in texts"
    page = (tmp_path / "out/README.md").read_text()
    assert "## Recipe" not in page and "## Scores" not in page and "| KL(source, export), nats per token |" in page
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out/generation_config.json").is_file()


@pytest.mark.slow
def test_beyond_the_bound_nothing_stays(tiny_llama, judged, tmp_path):
    with pytest.raises(ExportError, match="safetensors int8 strays from its source") as caught:
        export_artifact(tiny_llama, tmp_path / "out", make_export("safetensors", "int8", 1e-8), judged)
    assert list(tmp_path.iterdir()) == []
    accepted = float(str(caught.value).rpartition("max_kl=")[2].rstrip("."))
    export_artifact(tiny_llama, tmp_path / "out", make_export("safetensors", "int8", accepted), judged)


def test_four_bits_need_a_bound_before_any_work(tiny_llama, judged, tmp_path):
    with pytest.raises(RecipeError, match="max_kl must be given for int4"):
        export_artifact(tiny_llama, tmp_path / "out", make_export("onnx", "int4", None), judged)


@pytest.mark.slow
def test_folders_that_are_not_ours_are_never_replaced(tiny_llama, finished, judged, tmp_path):
    settings = make_export("safetensors", "float16", None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    artifact = finished[1] / "train/student/artifact"
    for source, out, message in (
        (tiny_llama, tmp_path / "mine", "no earlier export"),
        (tiny_llama, tmp_path / "mine" / "thesis.txt", "is a file"),
        (tiny_llama, tiny_llama, "which it is made from"),
        (tiny_llama, tiny_llama.parent, "which it is made from"),
        (tiny_llama, artifact, "no earlier export"),
    ):
        with pytest.raises(RunDirError, match=message):
            export_artifact(source, out, settings, judged)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for _ in range(2):  # an earlier export is replaced, and an empty folder filled
        export_artifact(tiny_llama, tmp_path / "new", settings, judged)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "mine"] == ["new"]


def test_exports_are_no_sources(tiny_llama, judged, tmp_path):
    export_artifact(tiny_llama, tmp_path / "int8", make_export("safetensors", "int8", None), judged)
    with pytest.raises(TeacherError, match="is an int8 export; exporting it once more would lose twice"):
        export_artifact(tmp_path / "int8", tmp_path / "again", make_export("safetensors", "float16", None), judged)


@pytest.mark.slow
def test_a_damaged_source_is_refused(finished, judged, tmp_path):
    shutil.copytree(finished[1] / "train/student/artifact", tmp_path / "a")
    (tmp_path / "a/config.json").write_text("{}")
    with pytest.raises(StoreError, match="config.json"):
        export_artifact(tmp_path / "a", tmp_path / "out", make_export("safetensors", "float16", None), judged)


def test_a_writer_that_breaks_the_model_is_found_out(tiny_llama, judged, tmp_path, monkeypatch):
    """The comparison is with what was written: a bug in a writer cannot pass."""
    before = module._writer

    def broken(kind):
        def write(folder, lm, *, quant):
            before(kind)(folder, lm, quant=quant)
            with safe_open(folder / "model.safetensors", "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            name = "model.layers.1.self_attn.q_proj.weight"
            tensors[name] = tensors[name].flip(0).contiguous()
            from safetensors.torch import save_file

            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        return write

    monkeypatch.setattr(module, "_writer", broken)
    with pytest.raises(ExportError, match="strays from its source"):
        export_artifact(tiny_llama, tmp_path / "out", make_export("safetensors", "float32", None), judged)


# ---- what the command line means -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_folder_means_its_student(finished, tiny_llama, tmp_path):
    _, run, _ = finished
    settings = make_export("gguf", "q8_0", None)
    model, found = find_source(str(run))
    assert (model, found) == (str(run / "train/student/artifact"), run)
    assert find_source(model) == (model, run)
    assert default_folder(model, run, settings) == run / "export/gguf-q8_0"
    assert find_source(str(tiny_llama)) == (str(tiny_llama), None)
    assert default_folder(str(tiny_llama), None, settings) == tiny_llama.with_name(f"{tiny_llama.name}-gguf-q8_0")
    assert str(default_folder("smollm2-135m", None, settings)) == "smollm2-135m-gguf-q8_0"
    assert str(default_folder("org/model", None, settings)) == "model-gguf-q8_0"
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(RunDirError, match="has no student yet"):
        find_source(str(tmp_path))


@pytest.mark.slow
def test_text_is_the_users_or_the_runs_or_built_in(finished, tiny_llama, text_jsonl, chat_jsonl):
    _, run, _ = finished
    lm = open_hf(tiny_llama, dtype="float32")
    held_out = judged_on(lm, None, run)
    assert held_out.text == "held-out rows" and {row.split for row in held_out.rows} == {"heldout"}
    for file in (text_jsonl, chat_jsonl):
        given = judged_on(lm, file, run)
        assert given.text == f"rows of {file.name}" and len(given.rows) >= 32
    built_in = judged_on(lm, None, None)
    assert len(built_in.rows) == 12 and sum(row.num_supervised for row in built_in.rows) > 400
    assert all(len(row.ids) <= 128 for row in built_in.rows), "the model's context"


@pytest.mark.slow
def test_run_export_tells_what_it_measured(tiny_llama, text_jsonl, tmp_path):
    messages: list[str] = []
    choice = ExportChoice(str(tiny_llama), tmp_path / "out", text_jsonl)
    settings = make_export("safetensors", "float16", None)
    told = run_export(choice, settings, on_progress=lambda _: None, on_message=messages.append)
    assert told["path"] == str(tmp_path / "out") and told["text"] == "rows of text.jsonl" and told["kl"] < 1e-4
    assert messages[-1] == f"exporting to {tmp_path / 'out'}; judged on rows of text.jsonl"


@pytest.mark.slow
def test_replies_of_the_teacher_are_what_a_run_of_replies_is_judged_on(tiny_llama, tmp_path):
    data = tiny.write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"Note {n}"} for n in range(24)])
    source = {"kind": "files", "path": str(data), "prompt": "prompt"}
    recipe = recipe_of(
        tiny_llama,
        data,
        data={"source": source, "max_length": 48, "holdout": 0.25},
        trace={"mode": {"kind": "generate", "max_tokens": 6}},
        export=EXPORTS[1:],
    )
    summary = run_recipe(recipe, tmp_path / "run", estimate=False)
    assert summary["exports"][0]["positions"] > 6
    rows = judged_on(open_hf(tiny_llama, dtype="float32"), None, tmp_path / "run").rows
    assert sum(row.num_supervised for row in rows) == summary["exports"][0]["positions"]


def test_source_precision_is_single(tiny_llama):
    assert module.open_source(tiny_llama).dtype == torch.float32
