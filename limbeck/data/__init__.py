"""The transfer set: what is read, how it is split, and encoded rows on disk."""

from limbeck.data.readers import count_rows, read_examples, source_files
from limbeck.data.split import Sample, row_id, split_of
from limbeck.data.table import read_rows, write_rows

__all__ = ["Sample", "count_rows", "read_examples", "read_rows", "row_id", "source_files", "split_of", "write_rows"]
