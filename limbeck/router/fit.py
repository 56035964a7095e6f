"""A router from prompts: those that each expert was made for, and how well it and the teacher did on held-out ones.

Held-out prompts are parted in two by their hash. One half calibrates (temperature, scope, expected quality, price), the
other is only reported on. `N` prompts, `E` experts, `M` models, `B` buckets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from limbeck.router.dataset import FitSettings, PromptCase, Split, Splits, background_prompts, part_cases
from limbeck.router.estimates import (
    MIN_REPLIES,
    MOST_REGRESSED,
    Cascade,
    fit_logistic,
    fit_temperature,
    ridge,
    shrunk_means,
    sigmoid,
)
from limbeck.router.features import Features, Vector, rarity, sketch, weighted
from limbeck.router.frontier import Price, RoutingProblem, price_for
from limbeck.router.router import SCOPE, TEACHER, Router, RouterSettings, Tensors, open_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_LEFT_OUT = 3000  # training prompts of an expert in a fit that only tells how left-out prompts look
FOLDS = 5  # most of such fits
L2 = 0.1
MIN_JUDGED = 10
MOST_KNOWN = 4000  # training prompts that new ones are compared with


@dataclass(frozen=True)
class FeatureTable:
    """What prompts are to a router: see `PromptFeatures`."""

    logits_NE: np.ndarray
    scope_NF: np.ndarray
    words_NM: np.ndarray


def featurize_all(router: Router, prompts: Sequence[str]) -> FeatureTable:
    """Every prompt as `router.decide` would see it."""
    seen = [router.look(prompt) for prompt in prompts]
    return FeatureTable(
        np.array([one.logits_E for one in seen]).reshape(len(seen), len(router.experts)),
        np.array([one.scope_F for one in seen]).reshape(len(seen), SCOPE),
        np.array([one.words_M for one in seen]).reshape(len(seen), len(router.models)),
    )


@dataclass(frozen=True)
class LeftOut:
    """P(in scope) of held-out test prompts by routers that never met some of the experts: of the experts that they
    know, and of those that they do not."""

    inside_N: np.ndarray
    outside_N: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """The router and what its report is made from. `price` is None without judged prompts."""

    router: Router
    parts: Splits
    wish: FitSettings
    left_out: LeftOut
    price: Price | None
    worst: float


def fit(cases: Iterable[PromptCase], wish: FitSettings) -> Fitted:
    """A router for the experts named in `cases`. Deterministic: the same cases and wish give the same bytes on a
    machine.

    Raises DataError for an expert with fewer than 10 training or 8 held-out prompts, for qualities outside 0 and 1, and
    for costs that are missing or none."""
    names, parts = part_cases(cases, wish)
    outside = background_prompts() if wish.background is None else list(wish.background)
    features = open_features(wish.bits, wish.seed, wish.encoder)
    router = _classifier(names, parts.train, wish, outside, features)
    looks = featurize_all(router, parts.calibrate.prompts)
    router = _with(router, temperature=fit_temperature(looks.logits_NE, parts.calibrate.kind_N))
    scope, left_out = _scope(names, parts, wish, outside, features)
    router = _with(router, scope=scope)
    inside_N = router.in_scope(looks.scope_NF)
    router = _with(router, threshold=float(np.quantile(inside_N, 1 - wish.keep, method="lower")))
    if len(judged_rows(parts.calibrate)) < MIN_JUDGED:
        return Fitted(router, parts, wish, left_out, None, 0.0)
    return _judged(router, parts, wish, left_out)


def _with(router: Router, **changes: object) -> Router:
    return replace(router, settings=replace(router.settings, **changes))


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _classifier(
    names: Sequence[str], train: Split, wish: FitSettings, outside: Sequence[str], features: Features
) -> Router:
    """Heads that tell each expert's prompts from those of all others, and from the background. (Background prompts that
    are an expert's own kind do no harm that was measured: leaving them out was worse, see docs/lab/log.md.)"""
    counted = [features.counts(prompt) for prompt in train.prompts]
    rarity_B = rarity(counted, features.size)
    own = [weighted(one, rarity_B) for one in counted]
    foreign = [weighted(features.counts(prompt), rarity_B) for prompt in outside]
    counter = [
        (names.index(name), weighted(features.counts(prompt), rarity_B))
        for name, prompts in sorted(wish.counter.items())
        for prompt in prompts
        if name in names
    ]
    heads = _fit(train, own, features.size, foreign, counter)
    models = len(names) + 1
    words = np.zeros((features.size, models), np.float32)
    unknown = np.full((len(names), models), np.nan)
    weights_BK = np.concatenate([heads.weights_BE, words], 1)
    known_PD = _sketches(train, own)
    tensors = Tensors(rarity_B, weights_BK, heads.bias_E, known_PD, unknown, unknown[0])
    settings = RouterSettings(
        experts=tuple(names),
        temperature=1.0,
        scope=(1.0,) + (0.0,) * SCOPE,
        threshold=0.0,
        price=0.0,
        costs={name: float(wish.costs[name]) for name in (*names, TEACHER)},
        target={"kind": wish.target.kind, "value": wish.target.value},
        bits=wish.bits,
        seed=wish.seed,
        encoder=wish.encoder,
        encoder_hash=features.hash,
    )
    return Router(settings, tensors, features)


def _sketches(train: Split, own: Sequence[Vector]) -> np.ndarray:
    """Training prompts of all experts, as many of each as there are of the fewest where they are more than fit."""
    most = max(MOST_KNOWN // len(np.unique(train.kind_N)), 1)
    rows = np.concatenate([np.flatnonzero(train.kind_N == kind)[:most] for kind in np.unique(train.kind_N)])
    return np.stack([sketch(own[row]) for row in rows])


def _fit(
    train: Split,
    own: Sequence[Vector],
    size: int,
    foreign: Sequence[Vector],
    counter: Sequence[tuple[int, Vector]],
) -> Heads:
    """Each expert counts the same, however many prompts it has; the background counts as one more expert. A
    counter-example speaks to one head only: it may well be another expert's kind."""
    num = int(train.kind_N.max()) + 1
    lines = len(own) + len(foreign) + len(counter)
    wanted_NE, weight_NE = np.zeros((lines, num), np.float32), np.zeros((lines, num), np.float32)
    wanted_NE[np.arange(len(own)), train.kind_N] = 1
    counts = np.bincount(train.kind_N, minlength=num)
    weight_NE[: len(own)] = (len(own) / num / counts)[train.kind_N][:, None]
    if foreign:
        weight_NE[len(own) : len(own) + len(foreign)] = len(own) / num / len(foreign)
    for at, (kind, _) in enumerate(counter, start=len(own) + len(foreign)):
        weight_NE[at, kind] = len(own) / num / counts[kind]
    vectors = [*own, *foreign, *(vector for _, vector in counter)]
    return fit_heads(Matrix.of(vectors, size), wanted_NE, weight_NE, l2=L2)


# ---- scope -----------------------------------------------------------------------------------------------------------


def _scope(
    names: Sequence[str], parts: Splits, wish: FitSettings, outside: Sequence[str], features: Features
) -> tuple[tuple[float, ...], LeftOut]:
    """Coefficients of P(in scope), from what prompts look like to routers that never met their expert. With one expert
    there is nobody to leave out: half of the background plays that part."""
    rows: dict[str, list[np.ndarray]] = {"inside": [], "outside": [], "test inside": [], "test outside": []}
    for left in _folds(len(names)):
        stay = [at for at in range(len(names)) if at not in left]
        known, unknown = (outside, []) if left else (outside[::2], outside[1::2])
        few = _only(parts.train, stay, most=MOST_LEFT_OUT)
        router = _classifier([names[at] for at in stay], few, wish, known, features)
        for prefix, part, turn in (("", parts.calibrate, 0), ("test ", parts.test, 1)):
            strangers = [*_only(part, left).prompts, *unknown[turn::2]]
            rows[f"{prefix}inside"].append(featurize_all(router, _only(part, stay).prompts).scope_NF)
            rows[f"{prefix}outside"].append(featurize_all(router, strangers).scope_NF)
    found = {name: np.concatenate(parts) for name, parts in rows.items()}
    ins, outs = len(found["inside"]), len(found["outside"])
    if not outs:  # one expert and no background: nothing to tell it from
        return (1.0,) + (0.0,) * SCOPE, LeftOut(np.empty(0), np.empty(0))
    weight_N = np.repeat([1 / ins, 1 / outs], [ins, outs])
    features_NF = np.concatenate([found["inside"], found["outside"]])
    scope = fit_logistic(features_NF, np.repeat([1.0, 0.0], [ins, outs]), weight_N)
    say = lambda features_NF: sigmoid(features_NF @ scope[:-1] + scope[-1])  # noqa: E731
    return tuple(scope.tolist()), LeftOut(say(found["test inside"]), say(found["test outside"]))


def _folds(experts: int) -> list[list[int]]:
    """Which experts are left out together, once each; nobody where there is one only."""
    if experts == 1:
        return [[]]
    num = min(experts, FOLDS)
    return [list(range(fold, experts, num)) for fold in range(num)]


def _only(part: Split, kinds: Sequence[int], *, most: int | None = None) -> Split:
    """The prompts of some experts, whose numbers become 0, 1, ..., at most so many of each."""
    rows = [np.flatnonzero(part.kind_N == kind)[:most] for kind in kinds]
    taken = part.take(np.concatenate([*rows, np.empty(0, np.int64)]))
    number = {kind: at for at, kind in enumerate(kinds)}
    return replace(taken, kind_N=np.array([number[kind] for kind in taken.kind_N.tolist()], np.int64))


# ---- quality ---------------------------------------------------------------------------------------------------------


def judged_rows(part: Split) -> np.ndarray:
    """Rows on which both the own expert and the teacher were judged."""
    own = part.quality_NM[np.arange(len(part)), part.kind_N]
    return np.flatnonzero(np.isfinite(own) & np.isfinite(part.quality_NM[:, -1]))


def _judged(router: Router, parts: Splits, wish: FitSettings, left_out: LeftOut) -> Fitted:
    part = parts.calibrate.take(judged_rows(parts.calibrate))
    worst = float(np.nanmin(part.quality_NM[:, :-1]))  # of any expert: what counts where one was never judged
    num = len(router.experts)
    looks = featurize_all(router, part.prompts)
    inside_N = router.in_scope(looks.scope_NF)
    kinds_NE = router.kinds(looks.logits_NE, inside_N)
    means_EM = shrunk_means(part.quality_NM, part.kind_N, num, worst)
    floor_M = np.full(num + 1, worst)
    floor_M[-1] = np.nanmean(part.quality_NM[:, -1])
    router = replace(router, tensors=replace(router.tensors, means_EM=means_EM, floor_M=floor_M))
    weights_BM, words_NM = _words(router, part, kinds_NE)
    weights_BK = np.concatenate([router.tensors.weights_BK[:, :num], weights_BM], 1).astype(np.float32)
    router = replace(router, tensors=replace(router.tensors, weights_BK=weights_BK))
    price = price_for(problem_of(router, part, worst, words_NM=words_NM), wish.target)
    router = _with(router, price=price.price)
    router = replace(router, cascades=cascades_of(router, part))
    return Fitted(router, parts, wish, left_out, price, worst)


def problem_of(router: Router, part: Split, worst: float, *, words_NM: np.ndarray | None = None) -> RoutingProblem:
    """Judged prompts as the router sees them. Where an expert was not judged, `worst` counts; `words_NM` instead of
    what the router would say of the words (where it learnt from these very prompts)."""
    looks = featurize_all(router, part.prompts)
    inside_N = router.in_scope(looks.scope_NF)
    kinds_NE = router.kinds(looks.logits_NE, inside_N)
    allowed_NM = np.repeat((inside_N >= router.settings.threshold)[:, None], len(router.models), axis=1)
    allowed_NM[:, -1] = True
    return RoutingProblem(
        np.where(np.isfinite(part.quality_NM), part.quality_NM, worst),
        router.expected(kinds_NE, looks.words_NM if words_NM is None else words_NM),
        router.cost_M,
        allowed_NM,
    )


def cascades_of(router: Router, part: Split) -> dict[str, Cascade]:
    """A cascade for every expert with enough replies whose log-probs are known. The teacher is asked where the reply is
    worth less than the teacher's, after the router's price for its cost."""
    found = {}
    for kind, name in enumerate(router.experts):
        rows = np.flatnonzero((part.kind_N == kind) & np.isfinite(part.logp_N))
        if len(rows) >= MIN_REPLIES:
            worth = part.quality_NM[rows, -1].mean() - router.settings.price * router.settings.costs[TEACHER]
            threshold = float(np.clip(worth, 0.0, 1.0))
            found[name] = Cascade.fit(part.logp_N[rows], part.quality_NM[rows, kind], threshold=threshold)
    return found


def _words(router: Router, part: Split, kinds_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A regression per model on what its means leave open: weights_BM, and what it says of each row without that
    row."""
    size = router.features.size
    vectors = [weighted(router.features.counts(prompt), router.tensors.rarity_B) for prompt in part.prompts]
    rest_NM = part.quality_NM - router.expected(kinds_NE, np.zeros_like(part.quality_NM))
    weights_BM, words_NM = np.zeros((size, len(router.models))), np.zeros_like(part.quality_NM)
    reach_NM = np.concatenate([kinds_NE, np.ones((len(part), 1))], 1)
    for model in range(len(router.models)):
        rows = np.flatnonzero(np.isfinite(rest_NM[:, model]))[:MOST_REGRESSED]
        if len(rows) < MIN_JUDGED:
            continue
        matrix = Matrix.of([vectors[row] for row in rows], size)
        reach_N = reach_NM[rows, model]
        gram_NN = matrix.gram() * np.outer(reach_N, reach_N)
        found = ridge(gram_NN, rest_NM[rows, model])
        dual_N1 = torch.from_numpy((found.dual_N * reach_N)[:, None].astype(np.float32))
        weights_BM[:, model] = matrix.transposed_times(dual_N1).numpy()[:, 0]
        words_NM[:, model] = [vector.values_M @ weights_BM[vector.buckets_M, model] for vector in vectors]
        words_NM[rows, model] = found.left_out_N / np.maximum(reach_N, 1e-9)
    return weights_BM, words_NM


# ---- logistic regression on sparse vectors: convex, so the start does not matter -------------------------------------

STEPS, MEMORY = 60, 8
GRAM = 128  # columns of a Gram matrix at a time


@dataclass(frozen=True)
class Matrix:
    """Sparse rows [N, B] and their transpose, each as bags: a product is one pass over what is not zero."""

    num: int
    rows: tuple[Tensor, Tensor, Tensor]  # bucket of each value, where each row begins, values
    columns: tuple[Tensor, Tensor, Tensor]  # row of each value, where each bucket begins, values

    @classmethod
    def of(cls, vectors: Sequence[Vector], size: int) -> Matrix:
        buckets = np.concatenate([vector.buckets_M for vector in vectors])
        values = np.concatenate([vector.values_M for vector in vectors])
        lengths = np.array([len(vector.buckets_M) for vector in vectors])
        owners = np.repeat(np.arange(len(vectors)), lengths)
        order = np.argsort(buckets, kind="stable")
        row_starts, column_starts = _starts(lengths), _starts(np.bincount(buckets, minlength=size))
        return cls(
            len(vectors),
            _tensors(buckets, row_starts, values),
            _tensors(owners[order], column_starts, values[order]),
        )

    def times(self, weights_BE: Tensor) -> Tensor:
        """rows @ weights_BE: [N, E]."""
        indices, starts, values = self.rows
        return embedding_bag(indices, weights_BE, starts, mode="sum", per_sample_weights=values)

    def transposed_times(self, rest_NE: Tensor) -> Tensor:
        """rows.T @ rest_NE: [B, E]."""
        indices, starts, values = self.columns
        return embedding_bag(indices, rest_NE, starts, mode="sum", per_sample_weights=values)

    def gram(self) -> np.ndarray:
        """rows @ rows.T [N, N], a block of columns at a time."""
        indices, starts, values = (part.numpy() for part in self.rows)
        ends, size = np.append(starts[1:], len(indices)), len(self.columns[1])
        blocks = []
        for first in range(0, self.num, GRAM):
            rows = range(first, min(first + GRAM, self.num))
            dense = np.zeros((size, len(rows)), np.float32)
            for at, row in enumerate(rows):
                part = slice(starts[row], ends[row])
                dense[indices[part], at] = values[part]
            blocks.append(self.times(torch.from_numpy(dense)).numpy())
        return np.concatenate(blocks, axis=1)


def _tensors(indices: np.ndarray, starts: np.ndarray, values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(indices), torch.from_numpy(starts), torch.from_numpy(values)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)


class Heads(NamedTuple):
    """One line per expert: logit = values @ weights[buckets] + bias. fp32."""

    weights_BE: np.ndarray
    bias_E: np.ndarray


def fit_heads(matrix: Matrix, wanted_NE: np.ndarray, weight_NE: np.ndarray, *, l2: float) -> Heads:
    """One logistic regression per expert against all that is not its own, minimised together by L-BFGS.

    `wanted_NE` is 1 for the expert's own prompts; `weight_NE` how much each prompt counts for each head (0: it says
    nothing about it). The penalty is l2 / 2 |weights|^2 over the sum of weights; biases are free.
    """
    size = len(matrix.columns[1])
    wanted, weight = torch.from_numpy(wanted_NE).float(), torch.from_numpy(weight_NE).float()
    weight = weight / weight.sum(0) * matrix.num
    heads = wanted.shape[1]
    weights_BE = torch.zeros(size, heads, requires_grad=True)
    bias_E = torch.zeros(heads, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights_BE, bias_E],
        max_iter=STEPS,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-7,
    )

    def loss_and_gradient() -> Tensor:
        with torch.no_grad():
            logits = matrix.times(weights_BE) + bias_E
            loss = (binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum() / matrix.num
            rest = (logits.sigmoid() - wanted) * weight / matrix.num
            weights_BE.grad = matrix.transposed_times(rest) + l2 / matrix.num * weights_BE
            bias_E.grad = rest.sum(0)
            return loss + l2 / (2 * matrix.num) * (weights_BE * weights_BE).sum()

    optimiser.step(loss_and_gradient)
    return Heads(weights_BE.detach().numpy(), bias_E.detach().numpy())
