"""Losses of distillation: plain references and the fused, chunked form. Pure maths, torch only."""

from limbeck.losses.chunked import Terms, cut_head, fused_distill_loss, fused_terms, iter_logits
from limbeck.losses.divergences import NAMES, divergence, on_cells

__all__ = ["NAMES", "Terms", "cut_head", "divergence", "fused_distill_loss", "fused_terms", "iter_logits", "on_cells"]
