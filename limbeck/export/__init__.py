"""Artifacts: models as folders that others can open, with a card."""

from limbeck.models.artifact import read_artifact, read_card, save_artifact, update_card
from limbeck.models.card import Card, make_card

__all__ = ["Card", "make_card", "read_artifact", "read_card", "save_artifact", "update_card"]
