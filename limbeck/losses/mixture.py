"""Several teachers as one: mixtures in probability space.

A mixture of full distributions is exact for every divergence: its log-probabilities `log sum_m w_m p_m` are logits as
any others are, and are tempered as they are. Of samples, the union of the draws, each with its teacher's weight, is a
sample of the mixture: forward KL's gradient is linear in p, so it is the mixture's, unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.types import Dist, Full, LiveTarget, Offers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.types import Target


@dataclass(frozen=True)
class Mixture:
    """Several teachers' full distributions as one: `sum_m w_m p_m`, exact, for every divergence. `log_weights_NM` are
    logarithms of weights that sum to 1 at each position (`mix` makes them)."""

    parts: tuple[LiveTarget, ...]
    log_weights_NM: Tensor
    offers: Offers = field(default="full", init=False, repr=False)
    cells: None = field(default=None, init=False, repr=False)
    knows_entropy: bool = field(default=True, init=False, repr=False)

    @property
    def full(self) -> Full:
        return Full(self.parts, self.log_weights_NM)

    def to(self, device: torch.device | str) -> Mixture:
        return Mixture(tuple(part.to(device) for part in self.parts), self.log_weights_NM.to(device))

    def __getitem__(self, part: slice) -> Mixture:
        """Some of the positions (views)."""
        return Mixture(tuple(one[part] for one in self.parts), self.log_weights_NM[part])


def mix(targets: Sequence[Target], weights: Sequence[float] | Tensor) -> Target:
    """The mixture of some targets at the same positions, with a weight for each (they are scaled to sum to 1), or with
    weights_NM: one for each position and target.

    Full targets give a full one. Samples give a sample, whose value is the mean of the single divergences: that of the
    mixture and a constant. Raises ValueError for weights that are negative, not finite or all zero, and for targets
    that know a top-k support only: which of one teacher's tail is in the other's support, they cannot tell.
    """
    log_weights_NM = _log_weights(targets, weights)
    if all(target.full is not None and len(target.full.parts) == 1 for target in targets):
        parts: tuple[LiveTarget, ...] = tuple(part for target in targets if target.full for part in target.full.parts)
        return Mixture(parts, log_weights_NM.to(parts[0].hidden_ND.device))
    samples = [target.cells for target in targets if target.cells is not None and target.cells.entropy_N is not None]
    if len(samples) < len(targets):
        found = ", ".join(target.offers for target in targets)
        raise ValueError(
            f"a mixture of targets that offer {found} is not known; allowed are several that offer full, or several "
            "that offer a sample (trace.target.kind sampled)"
        )
    return _mixed_samples(samples, log_weights_NM.to(samples[0].logp_NK.device))


def _log_weights(targets: Sequence[Target], weights: Sequence[float] | Tensor) -> Tensor:
    given = torch.as_tensor(weights, dtype=torch.float64)
    if not len(targets) or given.shape[-1] != len(targets):
        raise ValueError(
            f"there are {len(targets)} targets and weights of shape {tuple(given.shape)}; give one for each"
        )
    if not (given.isfinite().all() and (given >= 0).all() and (given.sum(-1) > 0).all()):
        raise ValueError("weights of a mixture must be finite, not negative, and not all zero")
    full = targets[0].full
    cells = targets[0].cells
    num = len(full.parts[0].hidden_ND) if full is not None else len(cells.ids_NK) if cells is not None else 0
    shares_NM = (given / given.sum(-1, keepdim=True)).expand(num, len(targets))
    return shares_NM.log().float()


def _mixed_samples(samples: Sequence[Dist], log_weights_NM: Tensor) -> Dist:
    shifts = [log_weights_NM[:, m : m + 1] for m in range(len(samples))]
    logp_NK = torch.cat([one.logp_NK + shift_N1 for one, shift_N1 in zip(samples, shifts, strict=True)], 1)
    tails_NM = torch.stack([one.tail_N + shift_N1[:, 0] for one, shift_N1 in zip(samples, shifts, strict=True)], 1)
    entropies_NM = torch.stack([one.entropy_N for one in samples if one.entropy_N is not None], 1)
    entropy_N = (entropies_NM * log_weights_NM.exp()).sum(1)
    return Dist(torch.cat([one.ids_NK for one in samples], 1), logp_NK, tails_NM.logsumexp(1), entropy_N)


def mixture_logits(each_MnV: Sequence[Tensor], log_weights_nM: Tensor) -> Tensor:
    """log sum_m w_m softmax(u_m) of a block of rows, in the first one's memory: all are lost."""
    total_nV = each_MnV[0]
    for number, u_nV in enumerate(each_MnV):
        shift_n = log_weights_nM[:, number].to(u_nV.dtype) - u_nV.logsumexp(1)
        u_nV.add_(shift_n[:, None])
        if number:
            torch.logaddexp(total_nV, u_nV, out=total_nV)
    return total_nV
