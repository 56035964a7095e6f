"""Looking into runs: the teacher's words token by token, and what a run has done."""

import shutil

import numpy as np
import pytest
import torch

from limbeck.data import write_rows
from limbeck.errors import DataError, RunDirError, StoreError
from limbeck.label.local import label_rows
from limbeck.label.plan import store_header
from limbeck.models.open import open_lm
from limbeck.pipeline.show import show_run, show_trace
from limbeck.recipe.recipe import dump_recipe
from limbeck.store import StoreWriter
from limbeck.system.rundir import RunDir, StageRecord
from limbeck.system.sealed import read_json, write_json
from limbeck.types import Row
from tests.recipes import tiny_recipe


@pytest.fixture
def run(tmp_path, tiny_llama):
    """A run folder with a labelled store of three rows."""
    recipe = tiny_recipe(f"teacher.path={tiny_llama}", "teacher.dtype=float32", "trace.target={kind: top_k, k: 8}")
    teacher = open_lm(tiny_llama, dtype="float32")
    rows = []
    for number in range(3):
        ids = np.array(teacher.tokenizer.encode(f"Note {number}: The rain left."), dtype=np.int32)
        rows.append(
            Row(
                f"{number}{'a' * 15}",
                "train",
                "weather",
                f"Note {number}",
                ids,
                ((2, len(ids)),),
                f"f.jsonl:{number + 1}",
            )
        )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", rows)
    header = store_header(recipe, teacher)
    writer = StoreWriter.open(tmp_path / "traces", header, [[row.id for row in rows]])
    writer.commit(0, *label_rows(recipe, header, teacher, rows, 0))
    return tmp_path, rows, teacher


def test_token_by_token(run):
    folder, rows, teacher = run
    view = show_trace(folder, row=1, top=3)
    assert (view.number, view.total, view.topic, view.source) == (1, 3, "weather", "f.jsonl:2")
    assert "".join(token.text for token in view.tokens) == "Note 1: The rain left."
    assert [token.supervised for token in view.tokens] == [False] * 2 + [True] * (len(rows[1].ids) - 2)
    assert view.tokens[0].alternatives == ()
    ids = torch.from_numpy(rows[1].ids.astype(np.int64))
    with torch.no_grad():
        p_NV = teacher.model(ids[None]).logits[0].softmax(-1)
    for token in view.tokens[2:]:
        p_V = p_NV[token.position - 1]
        top = p_V.topk(3)
        if top.values[0] - top.values[1] > 0.12:  # stored masses are rounded
            assert token.alternatives[0][0] == teacher.tokenizer.decode([top.indices[0]])
        assert [mass for _, mass in token.alternatives] == pytest.approx(top.values.tolist(), abs=0.06)
        assert token.rest == pytest.approx(1 - p_V.topk(8).values.sum().item(), abs=0.06)
        if token.chance is not None:
            assert token.chance == pytest.approx(p_V[ids[token.position]].item(), abs=0.06)


def test_by_id(run):
    folder, rows, _ = run
    assert show_trace(folder, id=rows[2].id[:6]).number == 2
    assert show_trace(folder, id=show_trace(folder, row=1).id).number == 1
    with pytest.raises(DataError, match="no row has an id that begins with 'zzz'"):
        show_trace(folder, id="zzz")
    with pytest.raises(DataError, match="there is no row 3; the run has 3 rows"):
        show_trace(folder, row=3)


def test_without_a_store(run):
    import shutil

    folder, _, _ = run
    shutil.rmtree(folder / "traces")
    view = show_trace(folder)
    assert not view.stored
    assert view.source == "f.jsonl:1"
    assert view.tokens[5].supervised and view.tokens[5].alternatives == ()
    (folder / "data" / "rows.parquet").unlink()
    with pytest.raises(DataError, match="no rows yet"):
        show_trace(folder)


def test_another_tokenizer_is_refused(run):
    folder, _, _ = run
    header = read_json(folder / "traces" / "store.json", "")
    write_json(folder / "traces" / "store.json", header | {"tokenizer_hash": "f" * 16})
    with pytest.raises(StoreError, match="another tokenizer"):
        show_trace(folder)


def test_not_a_run(tmp_path):
    for look in (show_trace, show_run):
        with pytest.raises(RunDirError, match="is not a run folder"):
            look(tmp_path)


def test_run(run):
    folder, _, _ = run
    RunDir(folder).finish(StageRecord("label", "0123456789abcdef", 1.5, 10, 20))
    (folder / "train" / "student").mkdir(parents=True)
    (folder / "train" / "student" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"ste'
    )
    view = show_run(folder)
    assert view.name == "tiny"
    assert view.student == {"kind": "prune", "layers": 2, "probe_rows": 16}
    assert [record.name for record in view.stages] == ["label"]
    assert view.bytes["traces"] > 100
    assert view.training == {"student": {"step": 2, "loss": 1.5}}
    assert view.summary == {}
    (folder / "summary.json").write_text('{"student": {"kl": 0.5}}')
    assert show_run(folder).summary["student"]["kl"] == 0.5
    (folder / "summary.json").write_text("{")
    with pytest.raises(StoreError, match="summary.json is damaged"):
        show_run(folder)


def test_a_store_of_texts_has_words_and_no_alternatives(run):
    """What an endpoint wrote: `limbeck show traces RUN --row N` works for it as for every other run."""
    from limbeck.endpoint.messages import ApiChoice
    from limbeck.label.replies import EndpointReply, keep_text

    folder, rows, teacher = run
    endpoint = ["teacher={kind: openai, model: m}", "trace.mode.kind=generate", "trace.target={kind: text}"]
    recipe = tiny_recipe(*endpoint, f"student={{kind: pretrained, path: {teacher.name}}}", "objective.ce_weight=1.0")
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    keeping = keep_text(recipe, teacher.tokenizer)
    made = [keeping.make(row, [EndpointReply(0, ApiChoice("a bird", "stop"), "m", "")]).traces[0] for row in rows]
    shutil.rmtree(folder / "traces")
    writer = StoreWriter.open(folder / "traces", keeping.header, [[row.id for row in rows]])
    writer.commit(0, [trace for trace, _ in made], [record for _, record in made])
    view = show_trace(folder, row=2)
    assert view.stored and "a bird" in "".join(token.text for token in view.tokens)
    assert any(token.supervised for token in view.tokens) and not any(token.alternatives for token in view.tokens)
