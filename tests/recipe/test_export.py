"""The recipe's section on exports: bounds by bits, words of the command line, contradictions."""

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import BITS, EXPORTS, bound_of, make_export, name_of_export, packages_of, quants_of
from limbeck.recipe.rules.check import check_static
from tests.recipes import tiny_recipe

ALL = [(kind, quant) for kind in EXPORTS for quant in quants_of(kind)]


@pytest.mark.parametrize(("kind", "quant"), ALL)
def test_every_quantisation_has_bits_and_a_bound_or_asks_for_one(kind, quant):
    export = make_export(kind, quant, 0.5)
    assert bound_of(export) == 0.5
    assert name_of_export(export) == f"{kind}-{quant}"
    if BITS[quant] < 8:
        with pytest.raises(RecipeError, match=f"max_kl must be given for {quant}"):
            make_export(kind, quant, None)
    else:
        bound = bound_of(make_export(kind, quant, None))
        assert bound == (0.02 if BITS[quant] < 16 else bound) and 0 < bound <= 0.02


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ggfu", None, None), "'ggfu'; it must be one of safetensors, gguf, onnx. Did you mean gguf"),
        (("onnx", "q8_0", None), "for onnx it must be one of fp32, int8, int4. It is one of gguf"),
        (("gguf", "q8", None), "Did you mean q8_0"),
        (("gguf", "q8_0", 0.0), "must be above 0"),
        (("gguf", "q8_0", float("nan")), "must be above 0"),
        (("gguf", "q8_0", float("inf")), "finite"),
    ],
)
def test_words_that_say_nothing_are_answered(words, message):
    with pytest.raises(RecipeError, match=message):
        make_export(*words)


def test_packages_are_those_of_the_format():
    assert packages_of(make_export("safetensors", "float16", None)) == ()
    assert packages_of(make_export("safetensors", "int8", None)) == (("torchao", "export"),)
    assert ("cyllama", "llamacpp") in packages_of(make_export("gguf", "f16", None))


@pytest.mark.parametrize(
    ("value", "where", "message"),
    [
        ("[{kind: gguf, quant: q4_0}]", "export[0].max_kl", "must be given for q4_0"),
        ("[{kind: gguf}, {kind: gguf, quant: q8_0}]", "export[1]", "gguf q8_0 once more"),
    ],
)
def test_contradictions(value, where, message):
    found = [problem for problem in check_static(tiny_recipe(f"export={value}")) if problem.where.startswith("export")]
    assert [problem.where for problem in found] == [where]
    assert message in found[0].message


@pytest.mark.parametrize(
    "value", ["[{kind: gguf, quant: int8}]", "[{kind: tflite}]", "[{kind: onnx, bits: 8}]", "[{kind: onnx, max_kl: 0}]"]
)
def test_what_the_section_does_not_have_is_refused(value):
    with pytest.raises(RecipeError, match="export"):
        tiny_recipe(f"export={value}")


def test_exports_that_are_sound():
    recipe = tiny_recipe("export=[{kind: gguf}, {kind: onnx, quant: int4, max_kl: 0.5}, {kind: safetensors}]")
    assert [name_of_export(export) for export in recipe.export] == ["gguf-q8_0", "onnx-int4", "safetensors-bfloat16"]
    assert not [problem for problem in check_static(recipe) if problem.where.startswith("export")]
