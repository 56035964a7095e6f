"""From a teacher's logits to a small target: exact head, unbiased sample, or both.

One form covers all kinds: a head of tokens with their exact probability, the mass of the rest (the tail), and draws
from the tail. top_k has no draws, sampled has no head, hybrid has both. Every kind conserves mass, and with draws the
target's expectation is the teacher's distribution exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

BLOCK = 128


@dataclass(frozen=True)
class SupportSpec:
    """`head` most tokens kept exactly, those below `min_prob` left to the tail; `draws` for a tail of mass 1 (a
    position gets draws in proportion to its tail's mass, at least 1), 0 for a tail cell instead of draws.

    `drawn_p`: the drawn tokens become the head, with the teacher's probability in place of how often each was drawn,
    renormalised over them. That is biased, towards what is probable.
    """

    head: int
    draws: int
    min_prob: float = 0.0
    drawn_p: bool = False


@dataclass(frozen=True)
class Support:
    """Selected distributions of n positions.

    head_ids_nH int64 (-1 where the head is shorter), head_p_nH their probabilities (0 there), tail_n the mass outside
    the head; draws as three flat arrays in order of position: draw_rows_Q, draw_ids_Q, draw_counts_Q (all int64), of
    any one position in ascending order of token; entropy_n the full entropy in nats (0 without draws).
    """

    head_ids_nH: Tensor
    head_p_nH: Tensor
    tail_n: Tensor
    draw_rows_Q: Tensor
    draw_ids_Q: Tensor
    draw_counts_Q: Tensor
    entropy_n: Tensor


def select(logits_nV: Tensor, spec: SupportSpec, temperature: float, generator: torch.Generator) -> Support:
    """Select the support of softmax(logits / temperature). Overwrites `logits_nV` (float32 or wider): some dozens of
    rows at a time, few enough for the cache, many enough that small operations do not count.

    Draws are systematic: one uniform number places `m` equally spaced points on the cumulative tail, so a token of
    tail probability t is drawn floor(m t) or ceil(m t) times, m t on average. That is unbiased like independent draws
    (Sparse Logit Sampling, arXiv 2503.16870) and its variance is never larger.
    """
    if temperature != 1.0:
        logits_nV.div_(temperature)
    head_ids_nH = top_ids(logits_nV, min(spec.head, logits_nV.shape[1]))
    if not spec.draws:
        p_nV = torch.softmax(logits_nV, 1, out=logits_nV)
        head_ids_nH, head_p_nH = _take_head(p_nV, head_ids_nH, spec.min_prob)
        tail_n = p_nV.sum(1).clamp(0.0, 1.0)
        none_Q = torch.zeros(0, dtype=torch.int64, device=p_nV.device)
        return Support(head_ids_nH, head_p_nH, tail_n, none_Q, none_Q, none_Q, torch.zeros_like(tail_n))
    max_n = logits_nV.amax(1)
    p_nV = torch.softmax(logits_nV, 1)
    entropy_n = max_n - p_nV.amax(1).log() - _mean_logit(p_nV, logits_nV)
    head_ids_nH, head_p_nH = _take_head(p_nV, head_ids_nH, spec.min_prob)
    p_nV = torch.nn.functional.pad(p_nV, (0, -p_nV.shape[1] % BLOCK))  # whole blocks; nothing is copied if they are
    blocks_nB = p_nV.view(len(p_nV), p_nV.shape[1] // BLOCK, BLOCK).sum(2)
    tail_n = blocks_nB.sum(1).clamp(0.0, 1.0)
    cdf_nB = blocks_nB.double().cumsum(1)
    m_n = torch.full_like(cdf_nB[:, -1], spec.draws)
    if spec.head:
        m_n = torch.where(cdf_nB[:, -1] > 0, (spec.draws * tail_n - 1e-4).ceil().clamp(1, spec.draws), 0.0)
    rows_Q, ids_Q, counts_Q = _draw(p_nV, cdf_nB, m_n, generator)
    drawn = Support(head_ids_nH, head_p_nH, tail_n, rows_Q, ids_Q, counts_Q, entropy_n.clamp_min(0.0))
    return _with_probabilities(drawn, p_nV, min(spec.draws, logits_nV.shape[1])) if spec.drawn_p else drawn


def _mean_logit(p_nV: Tensor, z_nV: Tensor) -> Tensor:
    """The mean of z under p; overwrites z. A token without any probability may have a logit of minus infinity: it adds
    nothing."""
    mean_n = z_nV.mul_(p_nV).sum(1)
    return mean_n if bool(mean_n.isfinite().all()) else z_nV.nan_to_num_(nan=0.0).sum(1)


def _take_head(p_nV: Tensor, ids_nH: Tensor, min_prob: float) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the head, whose entries of p become 0. The most probable token is always kept."""
    if not ids_nH.shape[1]:
        return ids_nH, p_nV[:, :0]
    head_p_nH = p_nV.gather(1, ids_nH)
    dropped_nH = head_p_nH < min_prob
    dropped_nH[:, 0] = False
    p_nV.scatter_(1, ids_nH.where(~dropped_nH, ids_nH[:, :1]), 0.0)
    return ids_nH.masked_fill(dropped_nH, -1), head_p_nH.masked_fill(dropped_nH, 0.0)


def _with_probabilities(drawn: Support, p_nV: Tensor, draws: int) -> Support:
    """Drawn tokens as a head with the teacher's probabilities, renormalised."""
    num = len(p_nV)
    sizes_n = torch.bincount(drawn.draw_rows_Q, minlength=num)
    column_Q = torch.arange(len(drawn.draw_rows_Q), device=p_nV.device)
    column_Q = column_Q - (sizes_n.cumsum(0) - sizes_n)[drawn.draw_rows_Q]
    ids_nH = torch.full((num, draws), -1, device=p_nV.device)
    head_p_nH = torch.zeros_like(ids_nH, dtype=p_nV.dtype)
    ids_nH[drawn.draw_rows_Q, column_Q] = drawn.draw_ids_Q
    head_p_nH[drawn.draw_rows_Q, column_Q] = p_nV[drawn.draw_rows_Q, drawn.draw_ids_Q]
    head_p_nH /= head_p_nH.sum(1, keepdim=True)
    none_Q = drawn.draw_rows_Q[:0]
    return Support(ids_nH, head_p_nH, torch.zeros_like(drawn.tail_n), none_Q, none_Q, none_Q, drawn.entropy_n)


def top_ids(z_nV: Tensor, k: int) -> Tensor:
    """The k largest of each row, in descending order: ids_nk int64. Exact, in one pass: the k largest values lie in
    the k blocks of largest maximum."""
    num, vocab = z_nV.shape
    blocks = vocab // BLOCK
    if k == 0 or blocks <= 2 * k:
        return z_nV.topk(k, dim=1).indices
    whole_nBT = z_nV[:, : blocks * BLOCK].view(num, blocks, BLOCK)
    best_nk = whole_nBT.amax(2).topk(k, dim=1).indices
    near = whole_nBT.gather(1, best_nk[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    ids = (best_nk[:, :, None] * BLOCK + torch.arange(BLOCK, device=z_nV.device)).flatten(1)
    if blocks * BLOCK < vocab:
        rest = torch.arange(blocks * BLOCK, vocab, device=z_nV.device)
        near = torch.cat([near, z_nV[:, blocks * BLOCK :]], 1)
        ids = torch.cat([ids, rest.expand(num, -1)], 1)
    return ids.gather(1, near.topk(k, dim=1).indices)


def _draw(p_nV: Tensor, cdf_nB: Tensor, m_n: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic draws, `m_n` of each row, in two levels (block, then token): (row, id, count) of every drawn token, in
    order of row and id."""
    num, vocab = p_nV.shape
    u_n = torch.rand(num, generator=generator, dtype=torch.float64).to(p_nV.device)
    sizes_n = m_n.long()
    rows_Q = torch.repeat_interleave(sizes_n)
    step_Q = torch.arange(len(rows_Q), device=p_nV.device) - (sizes_n.cumsum(0) - sizes_n)[rows_Q]
    points_Q = (u_n[rows_Q] + step_Q) * (cdf_nB[:, -1] / m_n.clamp_min(1))[rows_Q]
    # One search for all rows: row number + share of its mass is increasing over all of them.
    line = (cdf_nB / cdf_nB[:, -1:].clamp_min(1e-300) + torch.arange(num, device=p_nV.device)[:, None]).flatten()
    num_blocks = cdf_nB.shape[1]
    block_Q = torch.searchsorted(line, points_Q / cdf_nB[:, -1][rows_Q] + rows_Q, right=True) - rows_Q * num_blocks
    ids_Q = _within_blocks(p_nV, cdf_nB, rows_Q, block_Q.clamp(0, num_blocks - 1), points_Q)
    keys_Q, counts_Q = torch.unique_consecutive(rows_Q * vocab + ids_Q, return_counts=True)
    return keys_Q // vocab, keys_Q % vocab, counts_Q


def _within_blocks(p_nV: Tensor, cdf_nB: Tensor, rows_Q: Tensor, block_Q: Tensor, point_Q: Tensor) -> Tensor:
    """Token of every point, given its block: one search over the cumulative mass of the blocks that were hit, laid end
    to end (block number + share of its mass is increasing over all of them)."""
    num_blocks = cdf_nB.shape[1]
    hit_U, which_Q = torch.unique_consecutive(rows_Q * num_blocks + block_Q, return_inverse=True)
    inside_UK = p_nV.view(-1, BLOCK).index_select(0, hit_U)
    cdf_UK = inside_UK.cumsum(1, dtype=torch.float64)
    below_U = torch.where(hit_U % num_blocks > 0, cdf_nB.flatten()[(hit_U - 1).clamp_min(0)], 0.0)
    share_Q = ((point_Q - below_U[which_Q]) / cdf_UK[:, -1][which_Q]).clamp(0.0, 1.0)
    line = (cdf_UK / cdf_UK[:, -1:]).add_(torch.arange(len(hit_U), device=p_nV.device)[:, None]).flatten()
    place_Q = torch.searchsorted(line, which_Q + share_Q, right=True) - which_Q * BLOCK
    place_Q = place_Q.clamp(0, BLOCK - 1)
    # Rounding can point past the last token with mass: take the block's most probable token there.
    missed_Q = inside_UK.flatten()[which_Q * BLOCK + place_Q] <= 0
    if bool(missed_Q.any()):
        place_Q = torch.where(missed_Q, inside_UK.argmax(1)[which_Q], place_Q)
    return block_Q * BLOCK + place_Q


def join(parts: list[Support]) -> Support:
    """Supports of consecutive runs of positions as one. All must have the same head width."""
    shifts, shift = [], 0
    for part in parts:
        shifts.append(part.draw_rows_Q + shift)
        shift += len(part.tail_n)
    joined = {each.name: torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Support)}
    return Support(**{**joined, "draw_rows_Q": torch.cat(shifts)})


def split(support: Support, sizes: list[int]) -> list[Support]:
    """The inverse of `join`, for runs of the given numbers of positions."""
    ends = torch.tensor(sizes).cumsum(0)
    cuts = torch.searchsorted(support.draw_rows_Q.cpu(), ends).tolist()
    parts, start, cut_before = [], 0, 0
    for end, cut in zip(ends.tolist(), cuts, strict=True):
        drawn = slice(cut_before, cut)
        parts.append(
            Support(
                support.head_ids_nH[start:end],
                support.head_p_nH[start:end],
                support.tail_n[start:end],
                support.draw_rows_Q[drawn] - start,
                support.draw_ids_Q[drawn],
                support.draw_counts_Q[drawn],
                support.entropy_n[start:end],
            )
        )
        start, cut_before = end, cut
    return parts
