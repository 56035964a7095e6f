"""The proof that a model is read as it reads itself, made on the model when it is opened.

Two short documents are packed, and every row of logits is compared with the model's own of each document alone: at
single positions, since a mean hides what goes wrong at few. Then the first document is replaced: nothing of the second
may change, in any precision. What only long rows show (windows, chunks, frequencies that depend on the length) is shown
by short ones, by making every window and bound that the config names narrower than they are, for the model's own pass
as for ours.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.models.finite import advice, wrong_weights
from limbeck.models.rotary import LENGTH_BOUND, forget_length, length_bound, rope_kinds, rotary_modules
from limbeck.text.packing import pack
from limbeck.text.visible import some
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from limbeck.types import Batch

    Logits = Callable[[Batch], Tensor]

logger = logging.getLogger(__name__)

LENGTHS = (12, 7)
NARROW = 5
"""Tokens of every window and bound during the proof: fewer than either document has."""
LONGEST = 4096
"""Most tokens of a document that is read to prove a window which cannot be made narrower."""


class Tolerance(NamedTuple):
    """How far one row of logits may be from the model's own, as a share of its spread, and how far the second document
    from itself beside another first one. Half precision differs by rounding, and experts by whom it sends a token to;
    another context moves a row by its whole spread."""

    own: float
    neighbour: float


EXACT, HALF = Tolerance(5e-3, 2e-3), Tolerance(0.2, 0.05)


def tolerance_of(model: PreTrainedModel) -> Tolerance:
    return EXACT if model.dtype == torch.float32 else HALF


def prove(model: PreTrainedModel, packed_logits: Logits) -> None:
    """Raise TeacherError, naming the family, unless `packed_logits` (logits_NV of a packed batch) gives the model's own
    logits, whatever documents are packed together; and, naming what is wrong, where these are not numbers."""
    allowed = tolerance_of(model)
    rows = [_row(length, model) for length in LENGTHS]
    with torch.no_grad():
        plain = own_logits(model, rows[0])
        _refuse_numbers(model, plain)
        with windows_narrowed(model) as windows, bounds_narrowed(model):
            _compare(model, packed_logits, rows, allowed)
            _neighbour(model, packed_logits, rows, allowed)
            reached = not windows or row_error(own_logits(model, rows[0]), plain) > allowed.neighbour
        if not reached:
            _compare_long(model, packed_logits, allowed)


def own_logits(model: PreTrainedModel, row: Row) -> Tensor:
    """What the model itself says of a document alone, at its supervised positions."""
    for module in rotary_modules(model):
        forget_length(module)
    ids_1T = torch.from_numpy(row.ids.astype(np.int64))[None].to(model.device)
    return model(ids_1T, use_cache=False).logits[0, :-1].float()


def _compare(model: PreTrainedModel, packed_logits: Logits, rows: list[Row], allowed: Tolerance) -> None:
    ours_NV = _packed(model, packed_logits, rows)
    theirs_NV = torch.cat([own_logits(model, row) for row in rows])
    error = row_error(ours_NV, theirs_NV)
    logger.debug("%s: packed logits differ by %.3g of their spread", model.config.model_type, error)
    if not error <= allowed.own:
        raise TeacherError(_unsupported(model, f"its logits differ by {error:.3g} of their spread"))


def _neighbour(model: PreTrainedModel, packed_logits: Logits, rows: list[Row], allowed: Tolerance) -> None:
    """The second document beside two first ones that have no token in common."""
    others = [_row(LENGTHS[0], model, shift=1), *rows[1:]]
    one_NV, two_NV = (_packed(model, packed_logits, some)[LENGTHS[0] - 1 :] for some in (rows, others))
    error = row_error(one_NV, two_NV)
    logger.debug("%s: a document's neighbour moves it by %.3g of its spread", model.config.model_type, error)
    if not error <= allowed.neighbour:
        raise TeacherError(
            _unsupported(model, f"documents in one packed row see each other: by {error:.3g} of their spread")
        )


def _compare_long(model: PreTrainedModel, packed_logits: Logits, allowed: Tolerance) -> None:
    """Windows that stand elsewhere than in a number that can be changed: they need a document that is longer."""
    for window in sorted({place.value for place in _windows(model)}):
        if window < LONGEST:
            _compare(model, packed_logits, [_row(window + LENGTHS[0], model)], allowed)


def _packed(model: PreTrainedModel, packed_logits: Logits, rows: list[Row]) -> Tensor:
    try:
        return packed_logits(pack(rows, device=model.device))
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        raise TeacherError(_unsupported(model, str(error))) from error


def row_error(ours_NV: Tensor, theirs_NV: Tensor) -> float:
    """The largest difference of one row, over the row's spread."""
    spread_N = theirs_NV.std(-1).clamp_min(1e-6)
    return float(((ours_NV - theirs_NV).square().mean(-1).sqrt() / spread_N).amax())


def _row(length: int, model: PreTrainedModel, *, shift: int = 0) -> Row:
    layer: Any = model.get_input_embeddings()
    ids = ((np.arange(length, dtype=np.int64) + shift * length) * 7919 % len(layer.weight)).astype(np.int32)
    return Row("probe", "train", "", "", ids, ((1, length),), "probe")


def _unsupported(model: PreTrainedModel, why: str) -> str:
    return (
        f"the model family {model.config.model_type!r} is not supported: packed hidden rows and head do not reproduce "
        f"its own logits ({why}). Supported are decoders whose attention goes through transformers' attention "
        "interface and whose logits are a linear head with optional bias, scale and soft cap (Llama, Qwen, GPT-2, "
        "Gemma 2 ...)."
    )


# ---- numbers that are none -------------------------------------------------------------------------------------------


def _refuse_numbers(model: PreTrainedModel, logits_NV: Tensor) -> None:
    """Raise TeacherError where logits are NaN or infinite, with the weights that are, or else the type to try."""
    wrong_N = ~logits_NV.isfinite().all(-1)
    if not bool(wrong_N.any()):
        return
    found = list(wrong_weights(model))
    held = f"NaN or infinity is in the weights {some(found, 3)}" if found else "all its weights are finite"
    raise TeacherError(
        f"the model ({model.config.model_type}) gives no numbers: its logits are not finite from token "
        f"{int(wrong_N.nonzero()[0])} of a probe on; {held}. {advice(model.dtype)}"
    )


# ---- windows and bounds ----------------------------------------------------------------------------------------------

ENDINGS = ("sliding_window", "window_size", "attention_chunk_size", "local_attention")


class _Place(NamedTuple):
    """An attribute, or an entry of a dictionary, and what it was."""

    owner: Any
    name: str
    value: Any

    def set(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


@contextlib.contextmanager
def windows_narrowed(model: PreTrainedModel) -> Iterator[bool]:
    """Inside, every window and chunk that the model has is `NARROW` tokens; afterwards they are what they were. Gives
    whether there is one."""
    with _narrowed(_windows(model)) as places:
        yield bool(places)


@contextlib.contextmanager
def bounds_narrowed(model: PreTrainedModel) -> Iterator[None]:
    """The same for the lengths beyond which positions mean something else."""
    try:
        with _narrowed(_bounds(model)):
            yield
    finally:
        for module in rotary_modules(model):
            forget_length(module)


@contextlib.contextmanager
def _narrowed(places: list[_Place]) -> Iterator[list[_Place]]:
    try:
        for place in places:
            place.set(NARROW)
        yield places
    finally:
        for place in reversed(places):
            place.set(place.value)


def _windows(model: PreTrainedModel) -> list[_Place]:
    """Where the model keeps the sizes of its windows: in configs and in layers."""
    text: Any = model.config.get_text_config()
    if set(getattr(text, "layer_types", None) or ["unknown"]) <= {"full_attention"}:
        return []  # the size of a window that no layer has
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [
        _Place(owner, name, value)
        for owner in (*configs.values(), *model.modules())
        for name, value in list(vars(owner).items())
        if name.endswith(ENDINGS) and type(value) is int and value > NARROW
    ]


def _bounds(model: PreTrainedModel) -> list[_Place]:
    """Where it keeps the lengths beyond which positions mean something else."""
    text: Any = model.config.get_text_config()
    if length_bound(text) is None:
        return []
    kinds = [_Place(kind, LENGTH_BOUND, kind[LENGTH_BOUND]) for kind in rope_kinds(text) if kind.get(LENGTH_BOUND)]
    modules = [
        _Place(module, name, value)
        for module in rotary_modules(model)
        for name, value in list(vars(module).items())
        if name.endswith(("max_seq_len", "max_seq_len_cached"))
    ]
    return [*kinds, _Place(text, "max_position_embeddings", text.max_position_embeddings), *modules]
