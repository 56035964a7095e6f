"""Every error a user can cause. Each is also a standard error, so `except ValueError` keeps working.

A message says what was found, what is allowed, and what to do next. The command line prints it without a traceback
and exits with the class's `exit_code`.
"""

from __future__ import annotations


class LimbeckError(Exception):
    """Base of all user errors. `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(LimbeckError, ValueError):
    """The recipe is malformed, contradicts itself, or asks for what its parts cannot do."""

    exit_code = 3


class TeacherError(LimbeckError, ValueError):
    """The teacher (or any other model) cannot be opened or cannot do what is asked."""

    exit_code = 4


class UnalignedTokens(TeacherError):
    """A reply's tokens are not tokens of our vocabulary, or its log-probs are not log-probs: text, but no target."""


class BudgetError(LimbeckError, RuntimeError):
    """A resource ran out: memory or disk space."""

    exit_code = 5


class DataError(LimbeckError, ValueError):
    """A data file or row is missing, empty, malformed, or does not fit."""

    exit_code = 6


class EmptyRow(DataError):
    """A row without any text."""


class LongRow(DataError):
    """A row of more tokens than allowed that may not, or cannot, be cut."""


class UnsupervisedRow(DataError):
    """A row without a token to learn from."""


class StoreError(LimbeckError, ValueError):
    """A trace store or checkpoint is damaged, or does not belong to what it is applied to."""

    exit_code = 7


class RunDirError(LimbeckError, RuntimeError):
    """The run folder is in use by another process, or cannot be written."""

    exit_code = 8


class CaptureError(LimbeckError, ValueError):
    """The capture proxy is told something that it cannot or must not do."""

    exit_code = 2


class NonFiniteError(LimbeckError, ArithmeticError):
    """A loss or gradient became NaN or infinite; nothing was saved after the last finite step."""

    exit_code = 9


class MissingExtra(LimbeckError, ImportError):
    """An optional package is needed. `install` is the line that brings it."""

    exit_code = 10

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'limbeck[{extra}]'")


class SandboxError(LimbeckError, RuntimeError):
    """Code that a model wrote cannot be isolated on this machine."""

    exit_code = 11


class ExpertError(LimbeckError, ValueError):
    """An expert is damaged, unsafe, missing, or there already; or what is asked of the registry is not possible."""

    exit_code = 14


class EngineError(LimbeckError, RuntimeError):
    """An engine writes no more: its model failed, or it was closed."""

    exit_code = 13


class EngineFull(EngineError):
    """More requests wait than are allowed: to be tried again later."""


class Stopped(LimbeckError, RuntimeError):
    """The job was asked to stop (SIGTERM or Ctrl-C) and saved what it had; running it again resumes."""

    exit_code = 75
