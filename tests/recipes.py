"""A tiny recipe for tests, and values for hypothesis."""

from hypothesis import strategies as st

from limbeck.config.load import validate
from limbeck.config.yaml import parse_yaml
from limbeck.recipe import Recipe

TEXT = """\
name: tiny
teacher: {path: somewhere}
data:
  source: {kind: stdlib}
student: {kind: prune, layers: 2}
train:
  budget: {kind: tokens, tokens: 100}
"""


def tiny_recipe(*overrides: str) -> Recipe:
    return validate(Recipe, parse_yaml(TEXT, "tiny.yaml")).override(*overrides)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.from_regex(r"[-+.0-9eE_~:xo]{1,8}", fullmatch=True),
    st.sampled_from(
        ["null", "true", "no", "on", "1e6", "1:30", "2024-01-01", "089", "0x1F", ".inf", "=", "<<", "", " "]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_ :#1", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def tuples(value):
    if isinstance(value, list):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
