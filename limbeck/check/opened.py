"""What checks look at: models and rows of a recipe, each opened at first use and only once."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from transformers import AutoModelForCausalLM

from limbeck.check.estimate import estimate_stages
from limbeck.check.findings import StageEstimate
from limbeck.config.problems import Problem, problem
from limbeck.data import read_examples, read_rows
from limbeck.data.build import run_data
from limbeck.errors import DataError, LimbeckError, TeacherError
from limbeck.models.gguf_import import resolve_model
from limbeck.models.loading import load_config
from limbeck.models.open import open_hf
from limbeck.models.vocabulary import vocab_sizes_told
from limbeck.recipe import HfTeacher, PretrainedStudent, ScratchStudent
from limbeck.system.cost import disk_bytes, measure
from limbeck.system.rundir import RunDir
from limbeck.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.models.vocabulary import VocabSizes
    from limbeck.recipe import Recipe
    from limbeck.text.encode import Example
    from limbeck.types import OnProgress, Row

PEEK_ROWS = 3
T = TypeVar("T")


class CannotOpen(Exception):
    """Something that a check needs cannot be opened. `problem` says what; None where another check says it."""

    def __init__(self, problem: Problem | None) -> None:
        super().__init__(problem.message if problem else "")
        self.problem = problem


@contextlib.contextmanager
def problem_of(where: str, kind: type[LimbeckError]) -> Iterator[None]:
    """An error of that kind inside is a problem of the key `where`."""
    try:
        yield
    except kind as error:
        raise CannotOpen(Problem(where, str(error))) from error


@dataclass(frozen=True)
class ModelOutline:
    """A model's tokenizer and config: what can be known of it without its weights. `who` it is in sentences."""

    who: str
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    trust: bool

    @property
    def text(self) -> Any:
        return self.config.get_text_config()

    @property
    def layers(self) -> int | None:
        return getattr(self.text, "num_hidden_layers", None)

    @property
    def context(self) -> int | None:
        return getattr(self.text, "max_position_embeddings", None)

    @cached_property
    def vocab(self) -> VocabSizes:
        """Tokens, and rows for them."""
        return vocab_sizes_told(self.tokenizer, self.config)


class AllRows(NamedTuple):
    """The rows of the data stage, and what they took."""

    rows: list[Row]
    cost: StageEstimate


class once(Generic[T]):
    """A property that is worked out at first use. A failure is kept as well: a hub that gives no answer is asked once,
    whatever number of checks need the model. (`functools.cached_property` would ask again.)"""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __get__(self, opened: Opened, _owner: type) -> T:
        if self.make not in opened.outcomes:
            try:
                opened.outcomes[self.make] = self.make(opened)
            except CannotOpen as error:
                opened.outcomes[self.make] = error
        outcome = opened.outcomes[self.make]
        if isinstance(outcome, CannotOpen):
            raise outcome
        return outcome


class Opened:
    """The parts of one recipe. Each raises CannotOpen where it cannot be opened."""

    def __init__(self, recipe: Recipe, on_progress: OnProgress) -> None:
        self.recipe, self.on_progress = recipe, on_progress
        self.outcomes: dict[Any, Any] = {}

    @once
    def reader(self) -> ModelOutline:
        """The model whose tokenizer makes rows tokens."""
        (path, trust), local = self.recipe.reader, self.recipe.teacher.is_local
        if not path:  # a contradiction of the recipe
            raise CannotOpen(None)
        model = "student.like" if isinstance(self.recipe.student, ScratchStudent) else "student.path"
        where, who = ("teacher.path", "teacher") if local else (model, "student")
        return _outline(path, trust, where, who)

    @once
    def student(self) -> ModelOutline | None:
        """The model that the student starts from, where it is one of its own."""
        student = self.recipe.student
        if not isinstance(student, PretrainedStudent):
            return None
        if not self.recipe.teacher.is_local:
            return self.reader
        return _outline(student.path, student.trust_remote_code, "student.path", "student")

    @once
    def skeleton(self) -> Any:
        """The student's architecture without any weights; fewer layers or another size change nothing here."""
        model = self.student or self.reader
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model.config, trust_remote_code=model.trust)

    @once
    def examples(self) -> list[Example]:
        """The first rows, as they are read."""
        data = self.recipe.data
        with problem_of("data.source", LimbeckError):
            read = read_examples(data.source, bad_rows=data.bad_rows, on_bad=lambda _: None)
            found = list(islice(read, PEEK_ROWS))
        if not found:
            raise CannotOpen(problem("data.source", "has no usable row at all."))
        return found

    @once
    def all_rows(self) -> AllRows:
        """All rows, made as a run makes them, in a folder that is thrown away."""
        reader = self.reader
        with (
            problem_of("data.source", DataError),
            problem_of("teacher.path", TeacherError),
            tempfile.TemporaryDirectory(prefix="limbeck-check-") as folder,
            RunDir.open(Path(folder) / "run") as run,
        ):
            with measure() as cost:
                run_data(
                    self.recipe,
                    run,
                    reader.tokenizer,
                    max_context=reader.context,
                    num_rows=reader.vocab.embedding,
                    on_progress=self.on_progress,
                )
            disk = float(disk_bytes(run.path / "data"))
            rows = read_rows(run.path / "data" / "rows.parquet")
        return AllRows(rows, StageEstimate(seconds=cost.seconds, peak_bytes=cost.peak_bytes, disk_bytes=disk))

    @once
    def teacher(self) -> HfLM:
        """A teacher in this process, with its weights."""
        settings = self.recipe.teacher
        assert isinstance(settings, HfTeacher)
        with problem_of("teacher.path", TeacherError):
            return open_hf(settings.path, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)

    @once
    def costs(self) -> dict[str, StageEstimate]:
        """The estimate of each stage; of the first alone where the teacher is behind an endpoint."""
        rows, data = self.all_rows
        if not self.recipe.teacher.is_local:
            return {"data": data}
        with problem_of("data.source", DataError), problem_of("teacher.path", TeacherError):
            return {"data": data, **estimate_stages(self.recipe, self.teacher, rows)}  # type: ignore[dict-item]


def _outline(path: str, trust: bool, where: str, who: str) -> ModelOutline:
    with problem_of(where, LimbeckError):
        folder = resolve_model(path)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        config = load_config(folder, name=path, trust_remote_code=trust)
    return ModelOutline(who, tokenizer, config, trust)
