"""The router's parts, each against a plain way to say the same."""

import math

import numpy as np
import pytest
import torch

from limbeck.errors import DataError
from limbeck.router.dataset import FitSettings, PromptCase, background_prompts, part_cases
from limbeck.router.estimates import Cascade, fit_logistic, fit_temperature, ridge, shrunk_means, sigmoid, softmax
from limbeck.router.features import CHARS, WORDS, Hashing, plain, rarity, sketch, weighted
from limbeck.router.fit import Matrix, fit_heads
from tests.router.routing import cases, costs, prompts

# ---- features --------------------------------------------------------------------------------------------------------


def runs(text: str) -> list[tuple[str, str]]:
    """Every n-gram of characters and words, by plain Python."""
    padded = f" {plain(text)} "
    found = [("char", padded[at : at + n]) for n in CHARS for at in range(len(padded) - n + 1)]
    words = padded.split()
    return found + [("word", f"{n} " + " ".join(words[at : at + n])) for n in WORDS for at in range(len(words) - n + 1)]


@pytest.mark.parametrize("text", ["abc", "to be or not to be", "a", "naïve 東京 🙂🙂", "x" * 40])
def test_every_n_gram_has_a_bucket_and_equal_ones_the_same(text):
    """With 2^30 buckets nothing collides: as many buckets as different n-grams, filled as often."""
    vector = Hashing(bits=30).counts(text)
    found = runs(text)
    times = sorted(1 + math.log(found.count(run)) for run in set(found))
    assert sorted(vector.values_M.tolist()) == pytest.approx(times, rel=1e-6)
    assert (np.diff(vector.buckets_M) > 0).all()


def test_case_width_and_white_space_do_not_count():
    one, other = Hashing().counts("How are\n\n you"), Hashing().counts("  HOW \uff41\uff52\uff45 you ")
    assert np.array_equal(one.buckets_M, other.buckets_M)
    assert not len(Hashing().counts(" \n").buckets_M)


def test_a_vector_has_length_one_and_another_seed_other_buckets():
    counted = [Hashing().counts(text) for text in prompts("code", 30)]
    weights = rarity(counted, Hashing().size)
    assert all(np.linalg.norm(weighted(one, weights).values_M) == pytest.approx(1.0, abs=1e-5) for one in counted)
    assert weights.max() == pytest.approx(math.log(31) + 1)
    assert not np.array_equal(Hashing(seed=1).counts("hello").buckets_M, Hashing().counts("hello").buckets_M)


def test_a_sketch_keeps_inner_products():
    hashing, texts = Hashing(), prompts("code", 30) + prompts("music", 30)
    flat = np.ones(hashing.size, np.float32)
    vectors = [weighted(hashing.counts(text), flat) for text in texts]
    sketches = np.stack([sketch(one) for one in vectors])
    dense = np.zeros((60, hashing.size))
    for row, one in enumerate(vectors):
        dense[row, one.buckets_M] = one.values_M
    gaps = (sketches @ sketches.T - dense @ dense.T)[np.triu_indices(60, 1)]
    assert abs(gaps.mean()) < 0.02 and gaps.std() < 0.08


# ---- regressions -----------------------------------------------------------------------------------------------------


def random_matrix(num: int, size: int, seed: int = 0):
    draw = np.random.default_rng(seed)
    dense = draw.normal(size=(num, size)) * (draw.uniform(size=(num, size)) < 0.3)
    dense[:, 0] = 1.0
    from limbeck.router.features import Vector

    vectors = [Vector(np.flatnonzero(row), row[row != 0].astype(np.float32)) for row in dense]
    return dense, Matrix.of(vectors, size)


def test_products_with_sparse_rows():
    dense, matrix = random_matrix(7, 11)
    right, left = np.random.default_rng(1).normal(size=(11, 3)), np.random.default_rng(2).normal(size=(7, 3))
    assert np.allclose(matrix.times(torch.from_numpy(right).float()).numpy(), dense @ right, atol=1e-5)
    assert np.allclose(matrix.transposed_times(torch.from_numpy(left).float()).numpy(), dense.T @ left, atol=1e-5)
    assert np.allclose(matrix.gram(), dense @ dense.T, atol=1e-5)


def test_heads_end_where_the_gradient_is_zero():
    """Against the loss in double precision, written out."""
    dense, matrix = random_matrix(60, 12)
    wanted = (np.random.default_rng(3).uniform(size=(60, 2)) < 0.4).astype(np.float32)
    weight = np.random.default_rng(4).uniform(0.2, 2.0, (60, 2)).astype(np.float32)
    heads = fit_heads(matrix, wanted, weight, l2=0.5)
    w = torch.tensor(heads.weights_BE, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(heads.bias_E, dtype=torch.float64, requires_grad=True)
    share = torch.tensor(weight / weight.sum(0), dtype=torch.float64)
    logits = torch.tensor(dense) @ w + b
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(wanted).double(), reduction="none"
    )
    ((losses * share).sum() + 0.5 / (2 * 60) * (w * w).sum()).backward()
    assert w.grad is not None and b.grad is not None
    assert w.grad.abs().max() < 1e-4 and b.grad.abs().max() < 1e-4


def test_logistic_regression_finds_what_made_the_data():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(20_000, 2))
    right = (draw.uniform(size=20_000) < sigmoid(features @ [1.5, -0.5] + 0.3)).astype(float)
    assert fit_logistic(features, right, np.ones(20_000), l2=0.0) == pytest.approx([1.5, -0.5, 0.3], abs=0.06)
    parted = fit_logistic(features, (features[:, 0] > 0).astype(float), np.ones(20_000))
    assert np.isfinite(parted).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_undoes_what_logits_were_scaled_by(temperature):
    draw = np.random.default_rng(1)
    true = draw.normal(size=(20_000, 3)) * 2
    label = (softmax(true).cumsum(1) < draw.uniform(size=(20_000, 1))).sum(1)
    assert fit_temperature(true * temperature, label) == pytest.approx(temperature, rel=0.06)


def test_left_out_predictions_are_those_of_fits_without_the_row():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(30, 4))
    rest = rows @ [1.0, -1.0, 0.5, 0.0] + 0.1 * draw.normal(size=30)
    found = ridge(rows @ rows.T, rest)
    assert found.penalty < np.inf
    for at in range(30):
        stay = np.arange(30) != at
        weights = np.linalg.solve(rows[stay].T @ rows[stay] + found.penalty * np.eye(4), rows[stay].T @ rest[stay])
        assert rows[at] @ weights == pytest.approx(found.left_out_N[at], abs=1e-8)


def test_where_words_say_nothing_the_mean_stands():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(60, 50))
    found = ridge(rows @ rows.T, draw.normal(size=60))
    assert found.penalty == np.inf and not found.dual_N.any()


def test_means_of_few_rows_are_drawn_to_all_and_what_was_not_judged_is_the_worst():
    quality = np.array([[1.0, np.nan], [1.0, np.nan], [0.0, np.nan], [0.0, np.nan], [0.0, np.nan], [0.0, np.nan]])
    found = shrunk_means(quality, np.array([0, 0, 1, 1, 1, 1]), 3, 0.125)
    assert 1 / 3 < found[0, 0] < 1.0 and 0.0 < found[1, 0] < 1 / 3
    assert (found[:, 1] == 0.125).all() and found[2, 0] == 0.125


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_dealt_once_and_leaks_are_left_out():
    made = cases(train=30, heldout=21)
    leaked = PromptCase("code", f"  {made[0].prompt.upper()} ", "heldout")
    names, parts = part_cases([*made, leaked, *made], FitSettings(costs()))
    assert names == ["code", "maths", "medical"]
    assert [len(parts.train), len(parts.calibrate), len(parts.test)] == [90, 33, 30]
    assert not set(parts.calibrate.prompts) & set(parts.test.prompts)
    assert parts.notes == ["code: 1 held-out prompts are training prompts as well; they are left out."]
    again = part_cases(reversed([*made, leaked]), FitSettings(costs()))[1]
    assert again.test.prompts == parts.test.prompts and np.array_equal(again.test.kind_N, parts.test.kind_N)


@pytest.mark.parametrize(
    ("made", "wish", "match"),
    [
        ([], FitSettings(costs()), "no experts"),
        (cases(train=3), FitSettings(costs()), "3 training"),
        (cases(heldout=5), FitSettings(costs()), "5 held-out"),
        (cases(), FitSettings({"teacher": 1.0}), "--cost code"),
        (cases(), FitSettings({**costs(), "code": -1.0}), "0 or more"),
        (cases(), FitSettings({**costs(), "teacher": 0.0}), "teacher's cost is 0"),
        (cases(), FitSettings({**costs(), "nobody": 1.0}), "nobody, which is no expert"),
        (cases(), FitSettings(costs(), keep=1.5), "keep is 1.5"),
        (cases(), FitSettings(costs(), compared=("code",)), "cannot be both"),
        ([PromptCase("teacher", "x", "train")], FitSettings({"teacher": 1.0}), "cannot be named teacher"),
        ([PromptCase("code", "x", "valid")], FitSettings(costs()), "must be train or heldout"),
        ([PromptCase("code", "x", "heldout", {"code": 1.2})], FitSettings(costs()), "must be 0 to 1"),
        ([PromptCase("code", "x", "heldout", {"code": math.nan})], FitSettings(costs()), "must be 0 to 1"),
    ],
)
def test_what_cannot_be_fitted_on(made, wish, match):
    with pytest.raises(DataError, match=match):
        part_cases(made, wish)


def test_the_background_is_the_same_everywhere():
    found = background_prompts()
    assert len(found) == len(set(found)) == 2000 and found == background_prompts(3000)[:2000]
    assert not any("{" in text or "|" in text for text in found)


# ---- cascade ---------------------------------------------------------------------------------------------------------


def test_a_cascade_says_how_often_replies_are_right():
    draw = np.random.default_rng(0)
    logps = -draw.exponential(0.7, 4000)
    right = (draw.uniform(size=4000) < sigmoid(3.0 * logps + 2.0)).astype(float)
    found = Cascade.fit(logps[:2000], right[:2000], threshold=0.6)
    sure = np.array([found.right(logp) for logp in logps[2000:]])
    for low in (0.1, 0.3, 0.5, 0.7):
        rows = (sure >= low) & (sure < low + 0.2)
        assert sure[rows].mean() == pytest.approx(right[2000:][rows].mean(), abs=0.06)
    stands = np.array([found.decide(logp) for logp in logps[2000:]])
    assert right[2000:][stands].mean() > right[2000:][~stands].mean() + 0.3


def test_a_cascade_that_confidence_does_not_help_is_flat():
    logps = np.linspace(-2, 0, 40)
    found = Cascade.fit(logps, (logps < -1).astype(float))
    assert found.slope == 0.0 and found.right(-0.1) == found.right(-9.0) == pytest.approx(0.5, abs=0.05)
    alike = Cascade.fit([-1.0] * 30, [1.0] * 30)
    assert 0.9 < alike.right(-1.0) < 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_trusted(value):
    assert not Cascade(1.0, 10.0, 0.5, 20).decide(value)


@pytest.mark.parametrize(
    ("logps", "right"),
    [([-1.0] * 5, [1.0] * 5), ([1.0] * 30, [1.0] * 30), ([-1.0] * 30, [2.0] * 30), ([-1.0] * 30, [])],
)
def test_a_cascade_refuses(logps, right):
    with pytest.raises(DataError, match="a cascade needs"):
        Cascade.fit(logps, right)
