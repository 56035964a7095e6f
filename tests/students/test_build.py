from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.models.artifact import read_artifact, read_card
from limbeck.models.hf import HfLM
from limbeck.recipe import Recipe
from limbeck.students.build import build_student, load_pretrained, probe_rows
from limbeck.system.rundir import RunDir
from limbeck.types import Row
from tests import tiny


def make_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny.build_model("llama", num_hidden_layers=4, dtype=dtype).to(dtype)


@pytest.fixture
def teacher(tiny_tokenizer) -> HfLM:
    return HfLM.wrap(make_model(), tiny_tokenizer, name="tiny")


@pytest.fixture
def rows() -> list[Row]:
    generator = np.random.default_rng(0)
    return [
        Row(f"{i:016x}", "heldout" if i % 4 == 0 else "train", "", "", ids.astype(np.int32), ((1, 20),), f"t:{i}")
        for i, ids in enumerate(generator.integers(3, tiny.VOCAB, (12, 20)))
    ]


def make_recipe(**student: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny-expert",
            "seed": 5,
            "teacher": {"path": "tiny", "licence": "mit"},
            "data": {"source": {"kind": "stdlib"}},
            "student": student,
            "train": {"budget": {"kind": "steps", "steps": 1}},
        }
    )


def build(tmp_path, recipe, teacher, rows):
    with RunDir.open(tmp_path / "run") as run:
        path = build_student(recipe, run, teacher, rows)
    assert path == tmp_path / "run" / "student"
    return path, json.loads((path / "student.json").read_text())


def digest(path):
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_a_new_student_has_a_row_for_every_token_and_none_beside(tmp_path, rows, tiny_tokenizer):
    """Padding of the teacher's head is no token: no target says that it is never said."""
    padded = HfLM.wrap(tiny.build_model("llama", vocab_size=448), tiny_tokenizer, name="padded")
    for kind in ({"teacher_embeddings": True}, {}):
        recipe = make_recipe(kind="scratch", hidden_size=64, layers=1, heads=4, **kind)
        path, _ = build(tmp_path / str(len(kind)), recipe, padded, rows)
        model = AutoModelForCausalLM.from_pretrained(path)
        assert len(model.get_output_embeddings().weight) == len(tiny_tokenizer) == model.config.vocab_size == 384


def test_a_base_model_learns_its_instruction_teachers_ends(tmp_path, teacher, rows):
    base = tiny.build_tokenizer(chat_template=None)
    base.eos_token = tiny.PAD
    model = make_model()
    model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    path, _ = build(tmp_path, make_recipe(kind="pretrained", path=str(tmp_path / "base")), teacher, rows)
    opened = HfLM.open(path, dtype="float32")
    assert opened.end_ids == [2, 0] and opened.tokenizer.eos_token == tiny.END
    assert AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id == [2, 0]


def test_prune_by_influence(tmp_path, teacher, rows):
    path, facts = build(tmp_path, make_recipe(kind="prune", layers=3), teacher, rows)
    assert (facts["kind"], facts["probe_rows"], facts["probe_tokens"]) == ("prune", 9, 180)
    assert len(facts["influence"]) == facts["teacher_layers"] == 4
    assert facts["removed"] == [int(np.argmin(facts["influence"]))]
    assert sorted(facts["kept"] + facts["removed"]) == [0, 1, 2, 3]
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.config.num_hidden_layers == facts["layers"] == 3
    assert facts["parameters"] == model.num_parameters() < facts["teacher_parameters"]
    assert facts["embedding_parameters"] == tiny.VOCAB * 64
    assert AutoTokenizer.from_pretrained(path)("abc").input_ids == teacher.tokenizer("abc").input_ids
    assert "pruned to layers" in read_artifact(path).lineage[1]
    assert read_card(path).licence == "mit"


def test_prune_by_list_needs_no_rows_and_is_the_teachers_weights_in_float32(tmp_path, tiny_tokenizer):
    teacher = HfLM.wrap(make_model(torch.bfloat16), tiny_tokenizer, name="tiny")
    path, facts = build(tmp_path, make_recipe(kind="prune", keep=[0, 3]), teacher, [])
    assert (facts["influence"], facts["kept"], facts["removed"]) == (None, [0, 3], [1, 2])
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    theirs, ours = teacher.model.state_dict(), model.state_dict()
    for new, old in enumerate((0, 3)):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(ours[name.format(new)], theirs[name.format(old)].float())


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "prune", "layers": 2},
        {"kind": "scratch", "parameters": "300k", "teacher_embeddings": True},
        {"kind": "scratch", "hidden_size": 32, "layers": 2, "heads": 4},
    ],
)
def test_same_seed_gives_the_same_bytes(tmp_path, teacher, rows, student):
    first, second = (build(tmp_path / name, make_recipe(**student), teacher, rows) for name in "ab")
    assert digest(first[0]) == digest(second[0])
    assert first[1] == second[1]


def test_scratch(tmp_path, teacher, rows):
    path, facts = build(tmp_path, make_recipe(kind="scratch", parameters="300k"), teacher, rows)
    assert facts["parameters"] == pytest.approx(300_000, rel=0.1)
    assert (facts["kind"], facts["seed"], facts["teacher_embeddings"]) == ("scratch", 5, False)
    assert AutoModelForCausalLM.from_pretrained(path).get_output_embeddings().weight.shape[0] == tiny.VOCAB
    assert "random from seed 5" in read_artifact(path).lineage[1]


def test_pretrained(tmp_path, teacher, rows):
    own = make_model(torch.bfloat16)
    own.save_pretrained(tmp_path / "own")
    teacher.tokenizer.save_pretrained(tmp_path / "own")
    path, facts = build(tmp_path, make_recipe(kind="pretrained", path=str(tmp_path / "own")), teacher, rows)
    assert facts["kind"] == "pretrained"
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    assert torch.equal(model.get_input_embeddings().weight, own.get_input_embeddings().weight.float())
    assert str(tmp_path) not in (path / "config.json").read_text()


def test_pretrained_with_another_tokenizer_is_refused(tmp_path, teacher, rows):
    make_model().save_pretrained(tmp_path / "own")
    tiny.build_tokenizer(vocab=300).save_pretrained(tmp_path / "own")
    with pytest.raises(RecipeError, match="another tokenizer than the teacher"):
        build(tmp_path, make_recipe(kind="pretrained", path=str(tmp_path / "own")), teacher, rows)
    assert not (tmp_path / "run" / "student").exists()


@pytest.mark.parametrize("student", [{}, {"layers": 2, "keep": [0, 1]}])
def test_prune_needs_one_of_layers_and_keep(tmp_path, teacher, rows, student):
    with pytest.raises(RecipeError, match="either `layers`"):
        build(tmp_path, make_recipe(kind="prune", **student), teacher, rows)


def test_probe_rows_are_training_rows_spread_over_all(rows):
    assert [row.source for row in probe_rows(rows, 3)] == ["t:1", "t:6", "t:11"]
    assert len(probe_rows(rows, 100)) == 9
    with pytest.raises(DataError, match="no training rows"):
        probe_rows([row for row in rows if row.split == "heldout"], 3)


def test_opens_a_folder_in_float32(build, tmp_path):
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    student = load_pretrained(tmp_path)
    assert student.dtype == torch.float32
    assert not student.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor.float())


def test_pickled_weights_are_never_opened(build, tmp_path):
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"pickled weights only \(pytorch_model.bin\).*safetensors"):
        load_pretrained(tmp_path)


def test_code_in_a_folder_is_not_run(build, tmp_path):
    build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(TeacherError, match="trust_remote_code"):
        load_pretrained(tmp_path)


def test_no_such_model(tmp_path):
    with pytest.raises(TeacherError, match=r"cannot be opened.*Allowed are a hub id"):
        load_pretrained(tmp_path / "nothing")
    tmp_path.joinpath("config.json").write_text("{")
    with pytest.raises(TeacherError, match="cannot be opened|is not opened"):
        load_pretrained(tmp_path)
