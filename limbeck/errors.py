"""Every error a user can cause. Each is also a standard error, so `except ValueError` keeps working.

A message says what was found, what is allowed, and what to do next. The command line prints it without a traceback
and exits with the class's `exit_code`. `docs/reference/errors.md` is generated from the docstrings here.
"""

from __future__ import annotations


class LimbeckError(Exception):
    """Base of all user errors. `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(LimbeckError, ValueError):
    """The recipe is malformed, contradicts itself, or asks for what its parts cannot do.

    The message names file, line and key. `limbeck check` lists every problem of a recipe at once.
    """

    exit_code = 3


class TeacherError(LimbeckError, ValueError):
    """The teacher (or any other model or endpoint) cannot be opened, or cannot do what is asked.

    Check the path, the hub id, or the endpoint's address, key and model name. `limbeck check` tries each
    before any work is done. What was labelled or paid for is kept: run the same command again.
    """

    exit_code = 4


class UnalignedTokens(TeacherError):
    """The tokens of a reply are not tokens of the student's vocabulary, or its log-probs are not log-probs.

    Train on the text alone (`trace.target.kind: text`), or on the shares of several replies (`votes`).
    """


class BudgetError(LimbeckError, RuntimeError):
    """Memory, disk space, open files, or the money of `teacher.max_cost` ran out.

    Free space, raise the limit that the message names, or choose a smaller `train.batch_tokens`. Finished
    work is kept: run the same command again.
    """

    exit_code = 5


class DataError(LimbeckError, ValueError):
    """A data file or row is missing, empty, malformed, or does not fit.

    The message names file and row. Mend the row, or name the right column or format under `data.source`.
    """

    exit_code = 6


class EmptyRow(DataError):
    """A row has no text.

    Leave the row out, or name the column that holds the text.
    """


class LongRow(DataError):
    """A row has more tokens than allowed, and may not or cannot be cut.

    Raise `data.max_length`, or say with `data.long_rows` that long rows are cut or left out.
    """


class UnsupervisedRow(DataError):
    """A row has no token to learn from.

    A conversation needs a reply of the assistant; a text needs two tokens.
    """


class StoreError(LimbeckError, ValueError):
    """A trace store or checkpoint is damaged, or does not belong to what it is applied to.

    Run the same command again: damaged shards are labelled again, and a damaged checkpoint gives way to the
    one before. A store of another teacher, tokenizer or temperature cannot be used: label anew.
    """

    exit_code = 7


class RunDirError(LimbeckError, RuntimeError):
    """The run folder is in use by another process, or a disk refuses: it is read-only, fails, or knows no locks.

    Wait for the other process, or choose another folder with `--run-dir`. Finished work is kept.
    """

    exit_code = 8


class CaptureError(LimbeckError, ValueError):
    """The capture proxy is told something that it cannot or must not do.

    Mend the option that the message names. An address that others can reach needs `--allow-remote`.
    """

    exit_code = 2


class NonFiniteError(LimbeckError, ArithmeticError):
    """A loss or gradient became NaN or infinite. Nothing was saved after the last finite step.

    Lower `train.optimizer.lr`, lengthen the warm-up, or train in float32; then run the same command again.
    """

    exit_code = 9


class MissingExtra(LimbeckError, ImportError):
    """An optional package is needed and not installed.

    Run the `pip install` line of the message.
    """

    exit_code = 10

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'limbeck[{extra}]'")


class SandboxError(LimbeckError, RuntimeError):
    """Code that a model wrote cannot be isolated on this machine.

    Install bubblewrap and allow unprivileged user namespaces, or use a verifier that runs no code.
    """

    exit_code = 11


class ExportError(LimbeckError, ValueError):
    """An export strays further from its model than allowed. It was not kept.

    Choose a format with more bits, or say with `max_kl` how far it may stray.
    """

    exit_code = 12


class EngineError(LimbeckError, RuntimeError):
    """An engine writes no more: its model failed, or it was closed.

    The message carries the model's own error. Make a new engine, or start the server again.
    """

    exit_code = 13


class EngineFull(EngineError):
    """More requests wait than are allowed.

    Send the request again later, or allow more to wait.
    """


class ExpertError(LimbeckError, ValueError):
    """An expert is damaged, unsafe, missing, or there already; or the registry cannot do what is asked.

    `limbeck experts list` names what is damaged, and why. A version is never changed: add the next one.
    """

    exit_code = 14


class Stopped(LimbeckError, RuntimeError):
    """The job was asked to stop (SIGTERM, SIGHUP or Ctrl-C) and saved what it had.

    Run the same command again: it resumes.
    """

    exit_code = 75
