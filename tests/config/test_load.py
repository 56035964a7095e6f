"""What is wrong with a recipe file is told with line, suggestion and what is allowed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config.load import origin_of, validate
from limbeck.config.schema import paths_of
from limbeck.config.yaml import dump_yaml, parse_yaml
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe, Sampled
from limbeck.recipe.recipe import load_with_origins
from tests.recipes import TEXT, VALUES, tiny_recipe


@pytest.fixture
def complaint(tmp_path):
    def get(text: str, *overrides: str) -> str:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            Recipe.load(path, overrides)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return get


def test_misspelt_key(complaint):
    assert complaint(TEXT + "  optimiser: {lr: 1}\n") == (
        "r.yaml:8: 'optimiser' is not a key of train. Did you mean optimizer? Allowed: budget, optimizer, schedule, "
        "batch_tokens, accumulate, clip, precision, qad, activation_checkpointing, compile, parallel, "
        "checkpoint_minutes, keep_checkpoints, tensorboard, trackers, twin."
    )


def test_a_misspelt_required_key_is_one_problem(complaint):
    text = TEXT.replace("budget:", "bugdet:")
    assert complaint(text).count("\n") == 0
    assert complaint(text).startswith("r.yaml:7: 'bugdet' is not a key of train. Did you mean budget?")


def test_misspelt_kind(complaint):
    message = complaint(TEXT.replace("kind: prune", "kind: prone"))
    assert message == (
        "r.yaml:5: student.kind is 'prone'; it must be one of pretrained, prune, scratch. Did you mean prune?"
    )


def test_missing_kind_names_the_one_that_fits(complaint):
    message = complaint(TEXT.replace("{kind: tokens, tokens: 100}", "{tokens: 100}"))
    assert message == (
        "r.yaml:7: train.budget has no kind; train.budget.kind must be one of steps, tokens, epochs, minutes. "
        "With 'tokens' it is tokens."
    )


def test_key_of_another_kind(complaint):
    message = complaint(TEXT.replace("layers: 2", "path: x"))
    assert "r.yaml:5: 'path' is not a key of student of kind prune. It belongs to kind pretrained" in message


def test_key_at_the_wrong_level(complaint):
    assert "Did you mean train.optimizer.lr?" in complaint(TEXT + "  lr: 1\n")


def test_missing_sections(complaint):
    message = complaint("name: x\nteacher: {}\n")
    assert "r.yaml: data is missing; it must be a map with source" in message
    assert "r.yaml: student is missing; it is a map whose kind is one of pretrained, prune, scratch." in message
    assert "r.yaml:2: teacher.path is missing; it must be text (hub id, folder" in message


def test_everything_wrong_is_told_at_once_in_order(complaint):
    message = complaint(TEXT.replace("name: tiny", "name: Tiny") + "  clip: -1\n  twin: yes\n", "seed=x")
    lines = message.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["override seed=x", "r.yaml:1", "r.yaml:8", "r.yaml:9"]
    assert lines[2].endswith("train.clip is -1; it must be a number, above 0, or null.")
    assert lines[3].endswith("train.twin is 'yes'; it must be true or false.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers: 2", "layers: two", "student.layers is 'two'; it must be a whole number, above 0, or null."),
        ("layers: 2", "layers: true", "student.layers is true"),
        ("layers: 2", "layers: 2.5", "student.layers is 2.5"),
        ("layers: 2", "keep: [1, a]", "student.keep is [1, 'a']; it must be a list of whole numbers, or null."),
        ("path: somewhere", "path: 5", 'teacher.path is 5; it must be text. Put it in quotes: "5".'),
        ("path: somewhere", "path: x, dtype: bf16", "auto, float32, bfloat16, float16. Did you mean bfloat16?"),
        (
            "{kind: stdlib}",
            "stdlib",
            "data.source is 'stdlib'; it must be a map whose kind is one of stdlib, files, datasets, problems, "
            "captured.",
        ),
        ("{kind: stdlib}", "", "data.source is empty"),
        ("{path: somewhere}", "[1]", "teacher is [1]; it must be a map whose kind is one of hf, gguf, text"),
        ("{path: somewhere}", "{path: null}", "teacher.path is empty; it must be text."),
    ],
)
def test_wrong_values(complaint, old, new, message):
    assert message in complaint(TEXT.replace(old, new))


TERMS = "objective: {{temperature: {}, extra_terms: [{}]}}\n"


@pytest.mark.parametrize(
    ("temperature", "term", "message"),
    [
        (
            "0",
            "",
            "objective.temperature is 0; it must be a number, above 0, or a map whose kind is one of linear, cosine",
        ),
        ("hot", "", "objective.temperature is 'hot'; it must be a number, above 0, or a map"),
        ("{kind: lin, start: 2, end: 1}", "", "objective.temperature.kind is 'lin'; it must be one of linear"),
        ("{start: 2, end: 1}", "", "objective.temperature has no kind"),
        ("{kind: linear, start: 2}", "", "objective.temperature.end is missing"),
        ("1", "3", "objective.extra_terms is [3]; it must be a list of maps with divergence, weight, temperature."),
        ("1", "{weight: 2}", "objective.extra_terms[0].divergence is missing; it is a map whose kind is"),
        ("1", "{divergence: {kind: tvdd}}", "objective.extra_terms[0].divergence.kind is 'tvdd'"),
        ("1", "{divergence: {kind: tvd}, weight: 0}", "objective.extra_terms[0].weight is 0; it must be a number"),
        (
            "1",
            "{divergence: {kind: tvd}, weigth: 1}",
            "'weigth' is not a key of objective.extra_terms[0]. Did you mean weight?",
        ),
        (
            "1",
            "{divergence: {kind: tvd}}, {divergence: {kind: tvd, beta: 1}}",
            "'beta' is not a key of objective.extra_terms[1].divergence of kind tvd. It belongs to kind jsd",
        ),
    ],
)
def test_numbers_or_kinds_and_lists_of_sections(complaint, temperature, term, message):
    assert message in complaint(TEXT + TERMS.format(temperature, term))


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "3"])
def test_not_a_map(complaint, text):
    assert "a recipe is a map of sections" in complaint(text)


def test_values_are_not_coerced(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.replace("tokens: 100", "tokens: 1e6") + "  optimizer: {lr: 3e-4, betas: [0, 0.5]}\n")
    train = Recipe.load(path).train
    assert train.budget.tokens == 10**6  # pyright: ignore[reportAttributeAccessIssue]
    assert train.optimizer.lr == 3e-4
    assert train.optimizer.betas == (0.0, 0.5)


def test_default_kind_may_be_left_out(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT + "trace: {target: {draws: 5}}\n")
    assert Recipe.load(path).trace.target == Sampled(draws=5)


def test_origins(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    _, root = load_with_origins(path, ["seed=1"])
    assert origin_of(root, "train.budget.tokens") == f"{path}:7"
    assert origin_of(root, "train.optimizer.lr") == f"{path}:6"
    assert origin_of(root, "seed") == "override seed=1"
    assert origin_of(root, "evaluate.answers") == str(path)


PATHS = sorted(set(paths_of(Recipe)))


def mutated(tree: dict, path: list[str], value: object) -> dict:
    """A copy of `tree` with one value replaced or added, the way to it made of maps."""
    inner = tree.get(path[0])
    below = mutated(inner if isinstance(inner, dict) else {}, path[1:], value) if path[1:] else value
    return {**tree, path[0]: below}


@given(st.lists(st.tuples(st.sampled_from(PATHS) | st.text("abc.", min_size=1), VALUES), min_size=1, max_size=3))
def test_whatever_is_written_gives_a_recipe_or_a_recipe_error(changes):
    tree = parse_yaml(TEXT, "r.yaml").plain()
    for path, value in changes:
        tree = mutated(tree, path.split("."), value)
    try:
        validate(Recipe, parse_yaml(dump_yaml(tree), "r.yaml"))
    except RecipeError as error:
        lines = str(error).splitlines()
        assert len(lines) == len(set(lines))
        assert lines[0].startswith("r.yaml")


@given(st.sampled_from(PATHS), VALUES)
def test_whatever_is_overridden_gives_a_recipe_or_a_recipe_error(path, value):
    with contextlib.suppress(RecipeError):
        tiny_recipe(f"{path}={dump_yaml(value, flow=True)}".rstrip("\n"))
