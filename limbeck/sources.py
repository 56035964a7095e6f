"""The recipe's sections on where rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.shape import Section


class StdlibSource(Section):
    """Documented functions of the running interpreter's own standard library (topic: the module)."""

    kind: Literal["stdlib"] = "stdlib"


class FileSource(Section):
    """JSONL, Parquet, CSV or plain text: a file, a folder, or a glob. The format is read from the extension."""

    kind: Literal["files"] = "files"
    path: str = Field(description="file, folder or glob of .jsonl, .parquet, .csv, .txt or .md files")
    text: str | None = Field(default=None, description="column of plain text")
    prompt: str | None = Field(default=None, description="column of the prompt (with `completion`)")
    completion: str | None = Field(
        default=None, description="column of the completion (may be absent in generate mode)"
    )
    messages: str | None = Field(default=None, description="column of chat messages: a list of {role, content}")
    reference: str | None = Field(
        default=None, description="column of what a right answer is compared with; else the completion is"
    )
    topic: str | None = Field(default=None, description="column by which results are also reported")


class DatasetSource(Section):
    """A `datasets` name (hub id or a local folder that `datasets.load_dataset` opens)."""

    kind: Literal["datasets"] = "datasets"
    path: str = Field(description="name given to datasets.load_dataset")
    name: str | None = Field(default=None, description="configuration of the dataset")
    split: str = Field(default="train", description="split to read")
    text: str | None = Field(default=None, description="column of plain text")
    prompt: str | None = Field(default=None, description="column of the prompt (with `completion`)")
    completion: str | None = Field(default=None, description="column of the completion")
    messages: str | None = Field(default=None, description="column of chat messages: a list of {role, content}")
    reference: str | None = Field(
        default=None, description="column of what a right answer is compared with; else the completion is"
    )
    topic: str | None = Field(default=None, description="column by which results are also reported")


Source = StdlibSource | FileSource | DatasetSource
