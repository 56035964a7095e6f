"""Losses of distillation: plain references and the fused, chunked form. Pure maths, torch only."""

from limbeck.losses.chunked import cut_head, fused_distill_loss, fused_terms, iter_logits
from limbeck.losses.divergences import DIVERGENCES, NAMES, divergence, on_cells
from limbeck.losses.estimators import SampledKL, sampled_estimators, score_form
from limbeck.losses.terms import Adaptive, Term, Terms

__all__ = ["DIVERGENCES", "NAMES", "Adaptive", "SampledKL", "Term", "Terms"]
__all__ += ["cut_head", "divergence", "fused_distill_loss", "fused_terms", "iter_logits", "on_cells"]
__all__ += ["sampled_estimators", "score_form"]
