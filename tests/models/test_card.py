from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from limbeck.models.card import hub_id, licence_of, make_card, render
from limbeck.recipe import Recipe

SCORES = {
    "teacher": {"perplexity": 9.0, "parameters": 134_515_008, "bytes": 269 * 2**20, "tokens_per_second": 800.0},
    "student": {"kl": 0.25, "agreement": 0.8, "perplexity": 10.5, "ece": float("inf")},
    "twin": {"kl": 0.5, "agreement": 0.7},
}


def recipe(**teacher):
    return Recipe.model_validate(
        {
            "name": "tiny-expert",
            "scope": "Answers about tests.",
            "teacher": {"path": "smollm2-135m", **teacher},
            "data": {"source": {"kind": "stdlib"}},
            "student": {"kind": "prune", "layers": 2},
            "train": {"budget": {"kind": "steps", "steps": 3}},
        }
    )


def test_metadata_is_what_the_hub_reads(card):
    data = ModelCard(render(replace(card, scores=SCORES))).data
    assert data.base_model == "org/big"
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "text-generation")
    assert data.tags == ["distillation", "limbeck"]
    assert data.model_name == "tiny-expert"
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"kl": 0.25, "agreement": 0.8, "perplexity": 10.5}, "its own finite quality measures"


def test_page_has_table_lineage_licence_and_recipe(card):
    page = render(replace(card, scores=SCORES))
    assert "| | teacher | student | twin |" in page
    assert "| KL to the teacher, nats per token |  | 0.25 | 0.5 |" in page
    assert "| parameters | 134,515,008 |  |  |" in page
    assert "| size of the weights | 269.0 MiB |  |  |" in page
    assert "expected calibration error" not in page, "a row without a finite number is left out"
    assert "1. teacher org/big (weights 0123)\n2. pruned to layers 0, 2" in page
    assert "licence is Apache-2.0" in page
    assert "Answers about tests." in page


def test_recipe_block_holds_the_whole_recipe(card):
    assert f"````yaml\n{card.recipe_yaml}````" in render(card), "the fence is longer than any inside"


def test_card_before_the_evaluation(card):
    page = render(card)
    assert "Not evaluated yet." in page
    assert ModelCard(page).data.eval_results is None


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", ("mit", None)),
        (None, ("unknown", None)),
        ("My Own 1.0", ("other", "My Own 1.0")),
        ("  ", ("unknown", None)),
        *(
            (text, ("apache-2.0", None))
            for text in ("Apache 2.0", "Apache License, Version 2.0", "apache_2", "Apache-2.0 ")
        ),
        ("The MIT License (MIT)", ("other", "The MIT License (MIT)")),
        ("MIT License", ("mit", None)),
        ("BSD 3-Clause License", ("bsd-3-clause", None)),
        ("GPLv3", ("gpl-3.0", None)),
        ("GNU LGPL v3", ("lgpl-3.0", None)),
        ("CC BY 4.0", ("cc-by-4.0", None)),
        ("Llama 3.1 Community License", ("llama3.1", None)),
    ],
)
def test_licences(card, licence, expected):
    data = ModelCard(render(replace(card, licence=licence))).data
    assert (data.license, data.license_name) == expected
    if expected[0] == "other":
        assert data.to_dict()["license_link"] == "https://huggingface.co/org/big"


def test_a_card_does_not_tell_where_files_lie_on_this_machine(card):
    for source, shown in (
        ("files: /home/ann/clients/letters.jsonl", "files: letters.jsonl"),
        ("captured: ../ann/capture", "captured: capture"),
        ("datasets: org/name", "datasets: org/name"),
        ("stdlib", "stdlib"),
    ):
        page = render(replace(card, scores=SCORES, data_source=source))
        assert "ann/" not in page and f"- data: {shown}" in page
        assert f"held-out rows of {shown}" in page.split("\n---\n")[0]


def test_make_card_from_a_recipe(tmp_path):
    card = make_card(recipe(), lineage=["teacher smollm2-135m"], role="twin", scores=SCORES)
    assert (card.name, card.role, card.own_scores) == ("tiny-expert-twin", "twin", SCORES["twin"])
    assert (card.licence, card.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert card.data_source == "stdlib"
    (tmp_path / "recipe.yaml").write_text(card.recipe_yaml)
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe()
    assert make_card(recipe(licence="MIT"), lineage=[]).licence == "MIT"
    assert make_card(recipe(), lineage=[]).recipe_fingerprint == card.recipe_fingerprint


def test_licence_is_read_from_the_card_in_a_folder(tmp_path):
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n# Model\n")
    assert licence_of(str(tmp_path)) == "gemma"
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("no metadata at all")
    assert licence_of(str(tmp_path)) is None


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert hub_id("org/model-1.5B") == "org/model-1.5B"
    assert hub_id("models/mine") is None
    assert hub_id("models/file.gguf") is None
    assert hub_id("/abs/models/mine") is None
    assert hub_id("folder") is None
