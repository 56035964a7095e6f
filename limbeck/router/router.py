"""Which expert answers a prompt, or whether the teacher had better: a decision in less than a millisecond.

FOLDER/router.json          experts, what they cost, thresholds, what it was fitted on
FOLDER/router.safetensors   rarity_B, weights_BK, bias_E, known_PD, means_EM, floor_M (see Tensors)
FOLDER/MANIFEST.json        sizes and SHA-256 of both, and of the report beside them

`B` buckets of hashed n-grams, `E` experts, `M` models: the experts, then the teacher.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from limbeck.errors import StoreError
from limbeck.router.estimates import Cascade, expected_quality, sigmoid, softmax
from limbeck.router.features import SKETCH, Features, Hashing, sketch, weighted
from limbeck.router.frontier import choose
from limbeck.system.atomic import fingerprint, verify_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
SCOPE = 3  # what speaks for a prompt's scope: see Seen
NEAR = 3
TEACHER = "teacher"
JSON_FILE, TENSOR_FILE = "router.json", "router.safetensors"
AGAIN = "Run `limbeck route fit REGISTRY` again."


@dataclass(frozen=True)
class RouteDecision:
    """Where a prompt goes. `expert` None: to the teacher, or to nobody where there is no teacher.

    `confidence`: with an expert, the probability that the prompt is of its kind; without one, that it is of nobody's
    kind, or, where the teacher is only the better choice, the probability of the likeliest expert that was passed over.
    `probabilities` of the experts' kinds; what they lack to 1 is `out_of_scope`. `quality`: what each model is expected
    to reach, 0 to 1 ({} for a router fitted without judged rows).
    """

    expert: str | None
    confidence: float
    probabilities: dict[str, float]
    reason: str
    out_of_scope: float = 0.0
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RouterSettings:
    """The numbers of a fitted router.

    `temperature` divides logits; `scope` are the coefficients of P(in scope) on `PromptFeatures.scope_F` and 1; below
    `threshold` a prompt is out of scope. `price` is what a unit of cost has to bring in quality; `costs` of a prompt by
    model, the teacher's 1. `fitted_on` names experts and versions, `fingerprint` is made of them. `encoder` is the
    folder of an encoder instead of `bits` of hashed n-grams, with the hash of its files.
    """

    experts: tuple[str, ...]
    temperature: float
    scope: tuple[float, ...]
    threshold: float
    price: float
    costs: dict[str, float]
    fitted_on: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    target: dict[str, Any] = field(default_factory=dict)
    bits: int = 16
    seed: int = 0
    encoder: str = ""
    encoder_hash: str = ""


@dataclass(frozen=True)
class Tensors:
    """What a router multiplies with. `weights_BK`: a column of logits per expert, then of words' worth per model;
    `known_PD`: sketches of training prompts."""

    rarity_B: np.ndarray
    weights_BK: np.ndarray
    bias_E: np.ndarray
    known_PD: np.ndarray
    means_EM: np.ndarray
    floor_M: np.ndarray


@dataclass(frozen=True)
class PromptFeatures:
    """What one prompt is to the router: `logits_E`; what speaks for its scope, `scope_F`: its largest logit, the share
    of it that was seen in training, its cosine with the third nearest training prompt; and its words' worth,
    `words_M`."""

    logits_E: np.ndarray
    scope_F: np.ndarray
    words_M: np.ndarray


@dataclass(frozen=True)
class Router:
    """A fitted router. `Router.open(folder)`, then `decide(prompt)`. Frozen, and safe to use from several threads."""

    settings: RouterSettings
    tensors: Tensors
    features: Features
    cascades: dict[str, Cascade] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, *, expect: str | None = None) -> Router:
        """The router in a folder that `limbeck route fit` wrote, every file checked against its manifest.

        `expect` is the fingerprint of the experts as they are now: a router that was fitted on others is refused.
        Raises StoreError when the folder is missing, damaged, of another version, or fitted on other experts."""
        return load(Path(folder), expect)

    @property
    def experts(self) -> tuple[str, ...]:
        return self.settings.experts

    @property
    def models(self) -> tuple[str, ...]:
        return (*self.settings.experts, TEACHER)

    def look(self, prompt: str) -> PromptFeatures:
        """The prompt's numbers, before any threshold."""
        vector = weighted(self.features.counts(prompt), self.tensors.rarity_B)
        sums_K = vector.values_M @ self.tensors.weights_BK[vector.buckets_M]
        logits_E = (sums_K[: len(self.experts)] + self.tensors.bias_E).astype(np.float64)
        seen = self.tensors.rarity_B[vector.buckets_M] < self.unseen
        covered = float(vector.values_M[seen] @ vector.values_M[seen])
        near_P = self.tensors.known_PD @ sketch(vector)
        nearest = float(np.partition(near_P, -NEAR)[-NEAR]) if len(near_P) >= NEAR else 0.0
        scope_F = np.array([logits_E.max(), covered, nearest])
        return PromptFeatures(logits_E, scope_F, sums_K[len(self.experts) :].astype(np.float64))

    @cached_property
    def unseen(self) -> float:
        """The rarity of what no training prompt has."""
        return float(self.tensors.rarity_B.max())

    def in_scope(self, scope_NF: np.ndarray) -> np.ndarray:
        """P(in scope) of each prompt [N]."""
        return sigmoid(scope_NF @ np.array(self.settings.scope[:-1]) + self.settings.scope[-1])

    def kinds(self, logits_NE: np.ndarray, in_scope_N: np.ndarray) -> np.ndarray:
        """Probabilities of the experts' kinds [N, E]; they sum to P(in scope)."""
        return in_scope_N[:, None] * softmax(logits_NE / self.settings.temperature)

    def decide(self, prompt: str) -> RouteDecision:
        """Where `prompt` goes. Any text is decided on, the empty one and lone surrogates too; equal prompts alike. Of
        long prompts the first 3,072 and the last 1,024 characters are read."""
        seen = self.look(prompt)
        in_scope_N = self.in_scope(seen.scope_F[None])
        kinds_NE = self.kinds(seen.logits_E[None], in_scope_N)
        inside = float(in_scope_N[0])
        probabilities = dict(zip(self.experts, kinds_NE[0].tolist(), strict=True))
        expected_M = self.expected(kinds_NE, seen.words_M[None])[0]
        quality = dict(zip(self.models, expected_M.tolist(), strict=True)) if self.judged else {}
        likely = int(kinds_NE[0].argmax())
        name, chance = self.experts[likely], float(kinds_NE[0, likely])

        def decided(expert: str | None, confidence: float, reason: str) -> RouteDecision:
            return RouteDecision(expert, confidence, probabilities, reason, 1 - inside, quality)

        if inside < self.settings.threshold:
            return decided(None, 1 - inside, f"out of scope: {1 - inside:.0%} sure that it is of no expert's kind")
        if not self.judged:
            return decided(name, chance, f"{chance:.0%} of {name}'s kind")
        allowed_NM = np.ones((1, len(self.models)), bool)
        chosen = self.models[int(choose(expected_M[None], self.cost_M, allowed_NM, self.settings.price)[0])]
        worth, teacher = f"expected quality {quality[chosen]:.2f}", quality[TEACHER]
        if chosen == TEACHER:
            return decided(None, chance, f"better answered by the teacher: {worth}, {name}'s {quality[name]:.2f}")
        chance = probabilities[chosen]
        return decided(chosen, chance, f"{chance:.0%} of {chosen}'s kind; {worth}, the teacher's {teacher:.2f}")

    @property
    def judged(self) -> bool:
        """Whether held-out rows with their quality were there: else only the kind of a prompt decides."""
        return bool(np.isfinite(self.tensors.means_EM).all()) and self.tensors.means_EM.size > 0

    @property
    def cost_M(self) -> np.ndarray:
        return np.array([self.settings.costs.get(name, 1.0) for name in self.models])

    def expected(self, kinds_NE: np.ndarray, words_NM: np.ndarray) -> np.ndarray:
        """Expected quality [N, M]; NaN without judged rows."""
        if not self.judged:
            return np.full((len(kinds_NE), len(self.models)), np.nan)
        return expected_quality(self.tensors.means_EM, self.tensors.floor_M, kinds_NE, words_NM)


def open_features(bits: int, seed: int, encoder: str = "", expect: str | None = None) -> Features:
    """Hashed n-grams, or the encoder in a folder (which takes transformers, and seconds to open)."""
    if not encoder:
        return Hashing(bits, seed)
    from limbeck.router.encoder import TextEncoder

    return TextEncoder.open(encoder, expect=expect)


def experts_fingerprint(versions: Mapping[str, str]) -> str:
    """Of the experts that a router is for: name to version. A version's files never change."""
    return fingerprint("router", sorted(versions.items()))


# ---- on disk ---------------------------------------------------------------------------------------------------------


def write(folder: Path, router: Router) -> None:
    """Put router.json and router.safetensors into a folder that exists (within `rundir.atomic_dir`)."""
    save_file(
        {name: np.ascontiguousarray(value) for name, value in asdict(router.tensors).items()}, folder / TENSOR_FILE
    )
    (folder / TENSOR_FILE).chmod(0o644)
    cascades = {name: asdict(cascade) for name, cascade in router.cascades.items()}
    values = {"version": VERSION, **asdict(router.settings), "cascades": cascades}
    (folder / JSON_FILE).write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")


def load(folder: Path, expect: str | None = None) -> Router:
    """See `Router.open`."""
    if not (folder / JSON_FILE).is_file():
        raise StoreError(f"{folder} holds no router (no {JSON_FILE}). Run `limbeck route fit REGISTRY` to make one.")
    if problem := verify_dir(folder, only=(JSON_FILE, TENSOR_FILE)):
        raise StoreError(f"{problem}. {AGAIN}")
    try:
        values = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        version = values.pop("version")
        if version != VERSION:
            raise StoreError(f"{folder} has format version {version}; this Limbeck reads version {VERSION}. {AGAIN}")
        cascades = {name: Cascade(**cascade) for name, cascade in values.pop("cascades").items()}
        values["experts"], values["scope"] = tuple(values["experts"]), tuple(values["scope"])
        settings, tensors = RouterSettings(**values), Tensors(**load_file(folder / TENSOR_FILE))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the router in {folder} is not readable ({error}). {AGAIN}") from error
    if not isinstance(settings.bits, int) or not 1 <= settings.bits <= 30 or len(settings.scope) != SCOPE + 1:
        raise StoreError(f"{JSON_FILE} in {folder} has {settings.bits!r} bits and a scope of {settings.scope}. {AGAIN}")
    features = open_features(settings.bits, settings.seed, settings.encoder, settings.encoder_hash)
    router = Router(settings, tensors, features, cascades)
    try:
        _check(router, folder)
        router.decide("Is this read?")
    except StoreError:
        raise
    except Exception as error:  # numbers of the wrong kind fail where they are used
        raise StoreError(f"the router in {folder} cannot decide ({type(error).__name__}: {error}). {AGAIN}") from error
    if expect is not None and expect != settings.fingerprint:
        known = ", ".join(f"{name} {version}" for name, version in settings.fitted_on.items()) or "other experts"
        raise StoreError(f"the router in {folder} was fitted on {known}, and the registry has changed since. {AGAIN}")
    return router


def _check(router: Router, folder: Path) -> None:
    settings, tensors = router.settings, router.tensors
    size, num = router.features.size, len(settings.experts)
    models = num + 1
    wanted = {
        "rarity_B": (size,),
        "weights_BK": (size, num + models),
        "bias_E": (num,),
        "known_PD": (len(tensors.known_PD), SKETCH),
        "means_EM": (num, models),
        "floor_M": (models,),
    }
    for name, shape in wanted.items():
        if getattr(tensors, name).shape != shape:
            found = getattr(tensors, name).shape
            raise StoreError(f"{name} in {folder} is {found}, not {shape} as its {JSON_FILE} says. {AGAIN}")
