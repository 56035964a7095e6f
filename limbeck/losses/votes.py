"""Several replies to one prompt as soft labels: what share of them goes on with each token.

Without any log-prob, n replies sampled from a teacher are n votes at every prefix that they share. Equal replies are
kept once, with their share as a weight. Written out, the loss on all of them is

    sum over replies, positions t of  -log q(y_t | y_<t)
        = sum over distinct replies r, positions t of  count_r * sum over tokens v of  -share(v | y_<t) log q(v | y_<t)

since the replies that pass a prefix P and go on count m_P together, and m_P * share(v | P) of them go on with v: value
and gradient are those of the replies themselves, whatever the student.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.losses.support import Support

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class VotedReply:
    """One distinct reply: `ids` int32; `draws` the places of all equal ones in the list, in order; `share` of all
    replies; `support` the votes at each of its positions, as draws."""

    ids: np.ndarray
    draws: tuple[int, ...]
    share: float
    support: Support


def tally(replies: Sequence[np.ndarray]) -> list[VotedReply]:
    """The distinct replies to one prompt in order of their first appearance. A reply that was cut off does not vote
    after its last token. Raises ValueError for an empty reply: it has no position."""
    if any(not len(reply) for reply in replies):
        raise ValueError("a reply without any token cannot vote")
    follow: dict[int, Counter[int]] = {}  # node of the prefix tree -> its next tokens
    nodes: dict[tuple[int, int], int] = {}
    equal: dict[tuple[int, ...], list[int]] = {}
    paths: dict[tuple[int, ...], list[int]] = {}
    for place, reply in enumerate(replies):
        key = tuple(int(token) for token in reply)
        node, path = 0, []
        for token in key:
            path.append(node)
            follow.setdefault(node, Counter())[token] += 1
            node = nodes.setdefault((node, token), len(nodes) + 1)
        equal.setdefault(key, []).append(place)
        paths[key] = path
    num = len(replies)
    return [
        VotedReply(
            np.asarray(key, dtype=np.int32),
            tuple(places),
            len(places) / num,
            _support([follow[node] for node in paths[key]]),
        )
        for key, places in equal.items()
    ]


def _support(votes: Sequence[Counter[int]]) -> Support:
    num = len(votes)
    cells = [(row, token, count) for row, counter in enumerate(votes) for token, count in sorted(counter.items())]
    flat_Q3 = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3)
    none_nH = torch.zeros(num, 0)
    return Support(
        none_nH.long(), none_nH, torch.ones(num), flat_Q3[:, 0], flat_Q3[:, 1], flat_Q3[:, 2], torch.zeros(num)
    )
