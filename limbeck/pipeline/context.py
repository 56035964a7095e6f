"""What the stages of one run share: its recipe, its folder, and what is opened once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from limbeck.curate.stage import kept_ids, rule_files
from limbeck.data import read_rows
from limbeck.data.build import data_fingerprint
from limbeck.label.strip_reasoning import strips_thinking, without_thinking
from limbeck.models.gguf_import import resolve_model
from limbeck.models.identity import folder_content, hub_commit, model_content
from limbeck.models.loading import load_config
from limbeck.models.open import open_hf
from limbeck.models.vocabulary import vocab_sizes_told
from limbeck.recipe import DatasetSource, HfTeacher, JsonSchema, Judge
from limbeck.store import TraceStore
from limbeck.system.hashes import FileHashes
from limbeck.text.tokenizer import load_tokenizer, template_hash, tokenizer_hash
from limbeck.train.parallel import join_ranks
from limbeck.types import Vocab

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path

    from limbeck.models.hf import HfLM
    from limbeck.models.vocabulary import VocabSizes
    from limbeck.recipe import Recipe, Verifier
    from limbeck.system.rundir import RunDir
    from limbeck.types import Callbacks, Ranks, Row, Trace


@dataclass(frozen=True)
class RunContext:
    """One run. What is expensive is opened when a stage first needs it. `resources` are closed when the run ends."""

    recipe: Recipe
    run: RunDir
    callbacks: Callbacks
    resources: contextlib.ExitStack

    @property
    def path(self) -> Path:
        return self.run.path

    @cached_property
    def ranks(self) -> Ranks:
        """Joined once, by the first stage that all ranks work on: a second process group in one process finds the
        first one's addresses in torchrun's store, and waits for ever."""
        return self.resources.enter_context(join_ranks(self.recipe.train.parallel))

    @cached_property
    def teacher(self) -> HfLM:
        settings = self.recipe.teacher
        assert isinstance(settings, HfTeacher)
        self.callbacks.on_message(f"opening the teacher {settings.path}")
        teacher = open_hf(settings.path, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
        for note in teacher.notes:
            self.callbacks.on_message(f"warning: {note}")
        return teacher

    @property
    def local_teacher(self) -> HfLM | None:
        """The teacher where it runs in this process."""
        return self.teacher if self.recipe.teacher.is_local else None

    @cached_property
    def tokenizer(self) -> Any:
        path, trust = self.recipe.reader
        return load_tokenizer(resolve_model(path), trust_remote_code=trust)

    @cached_property
    def tokenizer_identity(self) -> list[str]:
        """Hashes of the tokenizer and of its template. Every token is hashed for it, once: all fingerprints hold it."""
        return [tokenizer_hash(self.tokenizer), template_hash(self.tokenizer)]

    @cached_property
    def reader_config(self) -> Any:
        """The text part of the config of the model whose tokenizer makes the rows."""
        path, trust = self.recipe.reader
        return load_config(resolve_model(path), name=path, trust_remote_code=trust).get_text_config()

    @property
    def columns(self) -> Vocab:
        """The real tokens: heads may be padded."""
        return Vocab(self.vocab.real, self.tokenizer_identity[0])

    @cached_property
    def vocab(self) -> VocabSizes:
        """Tokens of the tokenizer that makes the rows, and rows of its model."""
        return vocab_sizes_told(self.tokenizer, self.reader_config)

    @cached_property
    def data_identity(self) -> list[Any]:
        """What the rows come from. Every file is hashed for it, once."""
        return data_fingerprint(self.recipe)

    @cached_property
    def rule_files(self) -> list[str]:
        """Hashes of the files that the rules of curation read."""
        return rule_files(self.recipe)

    @cached_property
    def hashes(self) -> FileHashes:
        """Digests of the files of models, kept in the run: a large one is hashed once."""
        return FileHashes.open(self.path / "hashes.json")

    @cached_property
    def _contents(self) -> dict[str, dict[str, str]]:
        """What models and folders are now, by the recipe's names. Looked up once: one run sees one content."""
        return {}

    def model_content(self, path: str) -> dict[str, str]:
        """Digest by file of a model that the recipe names, or the commit of a hub id."""
        if path not in self._contents:
            self._contents[path] = model_content(path, self.hashes)
        return self._contents[path]

    def folder_content(self, path: str) -> dict[str, str]:
        """Digest of a file, or of every file below a folder."""
        if path not in self._contents:
            self._contents[path] = folder_content(path, self.hashes)
        return self._contents[path]

    def verifier_content(self, verifier: Verifier) -> dict[str, str]:
        """Digest by name of what a verifier reads: a schema, or a judge in this process."""
        if isinstance(verifier, JsonSchema) and verifier.path is not None:
            return self.folder_content(verifier.path)
        return self.model_content(verifier.path) if isinstance(verifier, Judge) and verifier.path else {}

    @cached_property
    def dataset_content(self) -> dict[str, str]:
        """The commit of a dataset that the hub holds. Files are in `data_identity`."""
        source = self.recipe.data.source
        commit = hub_commit(source.path, "dataset") if isinstance(source, DatasetSource) else None
        return {source.path: commit} if isinstance(source, DatasetSource) and commit else {}

    @cached_property
    def rows(self) -> list[Row]:
        return read_rows(self.path / "data" / "rows.parquet")

    @cached_property
    def store(self) -> TraceStore:
        return TraceStore.open(self.path / "traces")

    @property
    def has_labels(self) -> bool:
        """Whether there is anything to label: a live teacher on given text, or that text alone, leaves nothing to
        store."""
        return self.recipe.trace.mode.generates or self.recipe.trace.target.is_stored

    def items(self, split: str) -> list[Row] | list[Trace]:
        """What is trained or evaluated on: the teacher's traces, or the rows where nothing was labelled for them."""
        found = self.uncurated(split)
        if self.recipe.curate and split == "train":
            kept = kept_ids(self.path / "curate")
            found = [item for item in found if item.id in kept]
        if not strips_thinking(self.recipe):
            return found  # type: ignore[return-value]
        return without_thinking(self.recipe, self.tokenizer, found, self.rows, self.callbacks.on_message)  # type: ignore[arg-type]

    def uncurated(self, split: str) -> list[Row] | list[Trace]:
        if self.has_labels and (self.recipe.trace.mode.generates or split == "train"):
            wanted = {row.id for row in self.rows}
            return [trace for trace in self.store.traces(split) if trace.row_id in wanted]
        return [row for row in self.rows if row.split == split]
