"""The table of languages is that of the package which tells them apart."""

import unicodedata

import pytest

from limbeck.recipe.languages import KNOWN, SCRIPTS


def test_the_codes_are_those_of_the_package():
    langid = pytest.importorskip("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    assert set(SCRIPTS) == set(identifier.labels) - {"zxx"}  # zxx: no language


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("zh", "汉字"),
        ("ja", "漢字かなカナ"),
        ("ko", "한글漢字"),
        ("ru", "буквы"),
        ("sr", "жљшž"),
        ("ar", "حروف"),
        ("he", "אותיות"),
        ("hi", "अक्षर"),
        ("th", "อักษร"),
        ("el", "γράμματα"),
        ("am", "ፊደል"),
        ("en", "letters"),
    ],
)
def test_scripts_are_named_as_unicode_names_them(code, text):
    scripts = {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}
    assert scripts <= SCRIPTS[code] <= KNOWN
