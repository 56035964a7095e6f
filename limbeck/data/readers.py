"""One stream of examples from any source, with one policy for rows that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from limbeck.data.captured import find_segments, read_captured
from limbeck.data.columns import Columns
from limbeck.data.datasets import open_dataset, read_dataset
from limbeck.data.files import count_file, find_files, read_file
from limbeck.data.stdlib import read_stdlib
from limbeck.data.synthetic import read_problems
from limbeck.errors import DataError
from limbeck.recipe import CapturedSource, DatasetSource, FileSource, ProblemsSource, StdlibSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.recipe import DataSource
    from limbeck.text.encode import Example


def read_examples(
    source: DataSource, *, bad_rows: Literal["stop", "skip"], on_bad: Callable[[str], None]
) -> Iterator[Example]:
    """The examples of a source, in a fixed order, streamed.

    A malformed row stops the reading with a DataError that names file and row, or is told to `on_bad` and passed over.
    Always raises DataError when there is nothing to read or a named column does not exist.
    """

    def refuse(message: str) -> None:
        if bad_rows == "stop":
            raise DataError(f"{message} Mend it, or pass over such rows: data.bad_rows=skip.")
        on_bad(message)

    if isinstance(source, StdlibSource):
        yield from read_stdlib(refuse)
    elif isinstance(source, DatasetSource):
        yield from read_dataset(source, refuse)
    elif isinstance(source, ProblemsSource):
        yield from read_problems(source)
    elif isinstance(source, CapturedSource):
        yield from read_captured(source, refuse)
    else:
        for file in find_files(source.path):
            yield from read_file(file, Columns.of(source), refuse)


def count_rows(source: DataSource) -> int | None:
    """About how many rows a source has; None when only reading them tells. Raises as `read_examples`."""
    if isinstance(source, StdlibSource):
        return None
    if isinstance(source, ProblemsSource):
        return source.count
    if isinstance(source, DatasetSource):
        return len(open_dataset(source))
    if isinstance(source, CapturedSource):
        return sum(count_file(file) for file in find_segments(source.path))
    return sum(count_file(file) for file in find_files(source.path))


def source_files(source: DataSource) -> list[Path]:
    """The files whose content a source is made of; [] for the standard library, problems and hub names."""
    if isinstance(source, StdlibSource | ProblemsSource):
        return []
    if isinstance(source, FileSource):
        return find_files(source.path)
    if isinstance(source, CapturedSource):
        return find_segments(source.path)
    return sorted(file for file in Path(source.path).expanduser().rglob("*") if file.is_file())
