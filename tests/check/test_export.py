"""What exports need is asked before training."""

import pytest

from limbeck.check import export
from limbeck.check.recipe import check_recipe
from tests.export.test_verified import recipe_of


def problems(recipe):
    return [found for found in check_recipe(recipe, estimate=False).problems if found.where.startswith("export")]


def test_a_package_that_is_missing(tiny_llama, text_jsonl, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    (found,) = problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "safetensors", "quant": "int8"}]))
    assert found.where == "export[0]" and "needs the package 'torchao'" in found.message
    assert "pip install 'limbeck[export]'" in found.message
    assert not problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "safetensors", "quant": "float16"}]))


@pytest.mark.parametrize(("family", "fits"), [("llama", True), ("gpt2", False)])
def test_a_family_without_layers_to_quantize(tiny_folder, text_jsonl, family, fits):
    recipe = recipe_of(tiny_folder(family), text_jsonl, export=[{"kind": "safetensors", "quant": "int8"}])
    found = problems(recipe)
    assert bool(found) != fits
    assert fits or "'gpt2' has no linear layer that torchao quantizes" in found[0].message


def test_what_a_format_says_of_the_student_is_told(tiny_llama, text_jsonl, monkeypatch):
    import sys
    import types

    from limbeck.errors import TeacherError

    def family_of(model):
        raise TeacherError(f"{model.config.model_type} of {model.get_input_embeddings().weight.device} does not fit")

    module, name = export.FAMILIES["gguf"]
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: family_of}))
    (found,) = problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "gguf"}]))
    assert found.message == "export[0] does not fit the student: llama of meta does not fit"
