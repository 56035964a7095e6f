"""The door to `datasets`: hub names and local folders, through its own loading code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from limbeck.data.columns import Columns
from limbeck.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.recipe import DatasetSource
    from limbeck.text.encode import Example


def open_dataset(source: DatasetSource) -> Any:
    """The split of a dataset, memory-mapped. Raises DataError with the reason that `datasets` gives; MissingExtra
    without the package."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", f"reading the dataset {source.path!r}") from error

    with _no_bars(datasets):
        try:
            return datasets.load_dataset(source.path, source.name, split=source.split)
        except (OSError, ValueError, RuntimeError, pa.ArrowException, DatasetsError) as error:
            name = f"{source.path} ({source.name})" if source.name else source.path
            raise DataError(
                f"the split {source.split!r} of the dataset {name} cannot be loaded: {error}. Look at "
                "data.source: path, name and split."
            ) from error


def read_dataset(source: DatasetSource, refuse: Callable[[str], None]) -> Iterator[Example]:
    """Rows are numbered from 1. Malformed ones go to `refuse`."""
    rows = open_dataset(source)
    name = f"{source.path}[{source.split}]"
    columns = Columns.of(source).resolve(rows.column_names, name)
    rows = rows.select_columns(columns.names)
    if not len(rows):
        refuse(f"{name}: the split has no rows.")
    for number, row in enumerate(rows, 1):
        try:
            yield columns.columnar(row, f"{name}:{number}")
        except DataError as error:
            refuse(str(error))


@contextlib.contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Progress is drawn by the command line alone."""
    drawn = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()
