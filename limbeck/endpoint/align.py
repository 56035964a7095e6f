"""An endpoint's log-probs as sparse targets: its tokens are ours when their bytes are, and only then.

Expected are raw log-probs: of the model's own distribution, before temperature, top-p and penalties (the probe looks).
`n` positions of a reply, `H` cells of a support, `Q` cells of all positions in one row.

The end of a turn. Some endpoints tell no log-probs for the token that ends a reply. That position then is its label,
with mass 1. Taken alone that would count the end twice, since distributions at the other positions have a part of it
too. So where the end is not told, these become distributions given that the reply goes on (the end's cell is taken out,
the rest divided by its complement): with replies sampled at temperature 1, of all n that reach a prefix, a share p(end)
has the label and the others p(v) / (1 - p(end)), whose mean is p. What an end has below the last cell told stays in the
tail; it is less than that cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import UnalignedTokens
from limbeck.losses.support import Support

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from limbeck.endpoint.messages import Alternative, ApiToken
    from limbeck.text.token_bytes import TokenBytes

NEVER = -9000.0  # endpoints write -9999 for what cannot be
ROUNDED = 0.01  # log-probs are sometimes told to two or three digits: masses may add up to this much more than 1
REPLACED = "\ufffd".encode()
AS_ID = "token_id:"  # how vLLM spells tokens when it is asked for ids
SURE_END = 1e-3


@dataclass(frozen=True)
class Ends:
    """The tokens that end a turn (the first is what replies end with), and whether the endpoint tells their log-probs
    at the end of a reply."""

    ids: tuple[int, ...]
    told: bool


@dataclass(frozen=True)
class Aligned:
    """A reply as our tokens: `ids` int32 [n] and the support of each. `num_hard` positions have no distribution but
    their label; `unknown` is the mean mass of alternatives that are no tokens of ours, which is left to the tail."""

    ids: np.ndarray
    support: Support
    num_hard: int
    unknown: float


def align(tokens: Sequence[ApiToken], table: TokenBytes, ends: Ends, *, ended: bool = False) -> Aligned:
    """Ids and supports of a reply's tokens. `ended`: the reply came to its end (it was neither cut off nor ended by a
    stop string), so its end token follows where the endpoint did not write it.

    A support is the token that was sampled and the alternatives told beside it: whichever of a position's tokens are
    told, their probabilities are exact and the tail is the rest. Raises UnalignedTokens: what is no token of ours, a
    log-prob that is none, masses above 1, an end that should not have been told.
    """
    ids = [token_id(token, table) for token in tokens]
    for place, (found, token) in enumerate(zip(ids, tokens, strict=True)):
        if found is None:
            raise UnalignedTokens(
                f"token {place} of the reply is {_spelled(token)}, which is no token of this vocabulary; its log-probs "
                "cannot become targets. Use trace.target.kind=text, or votes."
            )
    written = bool(ids) and ids[-1] in ends.ids
    if written and not ends.told:
        raise UnalignedTokens(
            "the reply tells the log-prob of its end, which the probe did not see; probe again, so that all replies "
            "are read alike."
        )
    rows, cells, logp = _cells(ids, tokens, table)
    support, bare, unknown = _support(len(ids), rows, cells, logp, () if ends.told else ends.ids)
    out = np.array(ids, dtype=np.int32)
    num_hard = len(bare)
    if num_hard:
        support.head_ids_nH[bare, 0] = torch.from_numpy(out[bare].astype(np.int64))
    if ended and not written and ends.ids:
        out = np.append(out, np.int32(ends.ids[0]))
        support, num_hard = _with_label(support, ends.ids[0]), num_hard + 1
    return Aligned(out, support, num_hard, unknown)


def token_id(token: ApiToken | Alternative, table: TokenBytes) -> int | None:
    """Our id of an endpoint's token: its own id where it tells one, which must not contradict its bytes; else by
    bytes. A replacement character may be any part of a character: None."""
    told = token.id
    if told is None and token.text.startswith(AS_ID) and token.text[len(AS_ID) :].isdecimal():
        told = int(token.text[len(AS_ID) :])
    value = token.bytes
    if value is None or value.startswith(AS_ID.encode()):  # vLLM spells an alternative's id also in its bytes
        value = None if token.text.startswith(AS_ID) else token.text.encode("utf-8", "surrogatepass")
    if value is not None and REPLACED in value and table.find(value) is None:
        value = None
    if told is None:
        return None if value is None else table.find(value)
    own = table.of[told] if 0 <= told < len(table.of) else None
    # Control tokens are often told as no text at all.
    agrees = own is not None and (not value or own == value or own in table.special or own == b" " + value)
    return told if agrees else None


def _cells(
    ids: list[int | None], tokens: Sequence[ApiToken], table: TokenBytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, id (-1 where it is none of ours) and log-prob of every cell told, the sampled token's first."""
    rows = np.repeat(np.arange(len(tokens)), [1 + len(token.top) for token in tokens])
    cells: list[int] = []
    logp: list[float] = []
    for own, token in zip(ids, tokens, strict=True):
        assert own is not None
        found = [token_id(one, table) for one in token.top]
        cells += [own, *(-1 if one is None else one for one in found)]
        logp += [token.logp, *(one.logp for one in token.top)]
    return rows, np.array(cells, dtype=np.int64), np.array(logp, dtype=np.float64)


def _support(
    num: int, rows: np.ndarray, ids: np.ndarray, logp: np.ndarray, ends: Collection[int]
) -> tuple[Support, np.ndarray, float]:
    """The supports, the positions of which nothing is told (their head is one empty cell of mass 1), and the mean mass
    of cells that are none of ours. A token told twice counts once, as it was told first."""
    if np.isnan(logp).any() or (logp > ROUNDED).any():
        wrong = logp[np.isnan(logp) | (logp > ROUNDED)][0]
        raise UnalignedTokens(f"a log-prob is {wrong}; it must be at most 0. The endpoint's log-probs cannot be used.")
    p = np.exp(np.minimum(logp, 0.0))
    p[logp <= NEVER] = 0.0
    unknown = float(p[ids < 0].sum()) / max(num, 1)
    told = (ids >= 0) & (p > 0)
    rows, ids, p = rows[told], ids[told], p[told]
    _, first = np.unique(rows * (int(ids.max(initial=0)) + 1) + ids, return_index=True)
    rows, ids, p = rows[first], ids[first], p[first]
    mass = np.bincount(rows, weights=p, minlength=num)
    if (mass > 1 + ROUNDED).any():
        where = int(mass.argmax())
        raise UnalignedTokens(
            f"the probabilities told at position {where} add up to {mass[where]:.4f}; they must not exceed 1. The "
            "endpoint's log-probs are not those of one distribution."
        )
    mass = np.maximum(mass, 1.0)
    p /= mass[rows]
    tail = np.maximum(1.0 - np.bincount(rows, weights=p, minlength=num), 0.0)
    if ends:
        rows, ids, p, tail = _going_on(rows, ids, p, tail, ends)
    sizes = np.bincount(rows, minlength=num)
    bare = np.flatnonzero(sizes == 0)
    width = max(int(sizes.max(initial=1)), 1)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ids_nH = np.full((num, width), -1, dtype=np.int64)
    p_nH = np.zeros((num, width))
    ids_nH[rows, column], p_nH[rows, column] = ids, p
    p_nH[bare, 0], tail[bare] = 1.0, 0.0
    return (
        _heads(torch.from_numpy(ids_nH), torch.from_numpy(p_nH).float(), torch.from_numpy(tail).float()),
        bare,
        unknown,
    )


def _going_on(
    rows: np.ndarray, ids: np.ndarray, p: np.ndarray, tail: np.ndarray, ends: Collection[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distributions given that the reply goes on. Where the end was all but certain the rest is rounding: nothing is
    kept of the position, and it becomes its label."""
    over = np.isin(ids, list(ends))
    stay = 1.0 - np.bincount(rows[over], weights=p[over], minlength=len(tail))
    kept = ~over & (stay[rows] > SURE_END)
    return rows[kept], ids[kept], p[kept] / stay[rows[kept]], np.clip(tail / np.maximum(stay, SURE_END), 0.0, 1.0)


def _heads(ids_nH: torch.Tensor, p_nH: torch.Tensor, tail_n: torch.Tensor) -> Support:
    none_Q = torch.zeros(0, dtype=torch.int64)
    return Support(ids_nH, p_nH, tail_n, none_Q, none_Q, none_Q, torch.zeros_like(tail_n))


def _with_label(support: Support, label: int) -> Support:
    """One position more, which is its label."""
    width = max(support.head_ids_nH.shape[1], 1)
    ids_nH = torch.full((len(support.tail_n) + 1, width), -1)
    p_nH = torch.zeros(ids_nH.shape)
    ids_nH[:-1, : support.head_ids_nH.shape[1]] = support.head_ids_nH
    p_nH[:-1, : support.head_p_nH.shape[1]] = support.head_p_nH
    ids_nH[-1, 0], p_nH[-1, 0] = label, 1.0
    return _heads(ids_nH, p_nH, torch.cat([support.tail_n, torch.zeros(1)]))


def _spelled(token: ApiToken) -> str:
    value = "" if token.bytes is None else f" (bytes {token.bytes.hex(' ')})"
    return f"{token.text!r}{value}" + ("" if token.id is None else f" with the id {token.id}")


def check_text(ids: np.ndarray, text: str, table: TokenBytes, *, cut: bool = False) -> None:
    """Raise UnalignedTokens unless the tokens, control tokens aside, spell the reply. `cut`: the text may stop before
    the tokens do (a stop string was taken off), or begin after them (reasoning that was told apart)."""
    controls = set(table.special.values())
    spelled = table.join(int(index) for index in ids if int(index) not in controls).decode("utf-8", "replace")
    ours, theirs = (each.rstrip("\ufffd").strip() for each in (spelled, text))
    if ours != theirs and not (cut and theirs in ours):
        place = next((n for n in range(len(ours)) if ours[n] != theirs[n : n + 1]), len(ours))
        raise UnalignedTokens(
            f"the reply's tokens spell other text than the reply: {ours[place:][:20]!r} where it says "
            f"{theirs[place:][:20]!r}; its log-probs cannot become targets."
        )
