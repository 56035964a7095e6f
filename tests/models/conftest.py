"""The fixtures of `export`: a card is written by one room and read by the other."""

from tests.export.conftest import card

__all__ = ["card"]
