"""Experts: distilled models with a scope, in a registry that is a folder."""

from limbeck.experts.card import ExpertCard, PromptRow, Scope
from limbeck.experts.registry import Expert, Registry

__all__ = ["Expert", "ExpertCard", "PromptRow", "Registry", "Scope"]
