"""A model in this process through onnxruntime, on the CPU, with a key/value cache that is written in place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import MissingExtra, TeacherError
from limbeck.models import onnx_check
from limbeck.models.sampling import write_all
from limbeck.system.atomic import fingerprint, sha256_file
from limbeck.system.device import prepare_cpu
from limbeck.text.tokenizer import load_tokenizer, tokenizer_hash
from limbeck.types import Reply, Sampling

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue
    from transformers import PreTrainedTokenizerBase

PIECE = 256
"""Tokens of a prompt that are read at a time: the graph makes logits of all of them, 50 MB for 50,000 tokens."""
ROOM = 64
"""Places that a new cache has beyond its first tokens, at least."""


@dataclass(frozen=True)
class OnnxLM:
    """A decoder in an ONNX file with its tokenizer: a LocalLM."""

    name: str
    fingerprint: str
    tokenizer_hash: str
    tokenizer: PreTrainedTokenizerBase
    decoder: onnx_check.OnnxDecoder
    runtime: InferenceSession
    end_ids: list[int]
    max_context: int | None = None

    @classmethod
    def open(cls, folder: str | Path, *, threads: int | None = None) -> OnnxLM:
        """Open a folder with model.onnx, a tokenizer, and what there is of config.json and generation_config.json.

        `threads` is as many as torch uses when None. Raises TeacherError for a folder that is no such model, is
        damaged, or asks for more than a decoder may (files elsewhere, libraries); MissingExtra without onnxruntime.
        """
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise MissingExtra(package, "export", "opening an ONNX model")
        prepare_cpu()
        path = Path(folder)
        decoder = onnx_check.check(path)
        tokenizer = load_tokenizer(str(path))
        identity = fingerprint(*(sha256_file(file) for file in decoder.files))
        end_ids = _end_ids(_settings(path / "generation_config.json").get("eos_token_id", tokenizer.eos_token_id), path)
        runtime = _runtime(decoder, threads or torch.get_num_threads())
        return cls(
            name=str(folder),
            fingerprint=identity,
            tokenizer_hash=tokenizer_hash(tokenizer),
            tokenizer=tokenizer,
            decoder=decoder,
            runtime=runtime,
            end_ids=end_ids,
            max_context=_max_context(_settings(path / "config.json")),
        )

    @property
    def vocab(self) -> int:
        return min(self.decoder.rows, len(self.tokenizer))

    def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
        """`sampling.n` replies to each prompt, one after the other. Deterministic given `sampling.seed`."""
        return write_all(self, prompts, sampling)

    def logits(self, ids: np.ndarray) -> Tensor:
        """logits_TV of one sequence, fp32, real tokens only: row t predicts token t + 1."""
        session = self.session()
        try:
            return torch.cat([session.read(ids[at : at + PIECE]) for at in range(0, len(ids), PIECE)])
        finally:
            session.close()

    def session(self) -> OnnxSession:
        return OnnxSession(self)


class OnnxSession:
    """One sequence and its cache.

    Where the graph can (`shares_cache`), the cache is memory of our own that past and present both point to: reading a
    token writes its keys and values and moves nothing. Else each present becomes the next past, as it is.
    """

    def __init__(self, lm: OnnxLM) -> None:
        self._lm, self.length, self._room = lm, 0, 0
        self._cache: list[OrtValue] = []
        self._names = lm.decoder.cache_names

    def feed(self, ids: np.ndarray) -> Tensor:
        """Append `ids` (at least one); logits_V for the token that follows."""
        logits_TV = self.read(ids[:PIECE])
        for at in range(PIECE, len(ids), PIECE):
            logits_TV = self.read(ids[at : at + PIECE])
        return logits_TV[-1].clone()  # not a view, which would keep those of the whole piece alive

    def read(self, ids: np.ndarray) -> Tensor:
        """Append `ids` and return logits_TV of each. Raises TeacherError beyond the longest sequence, for ids that are
        no tokens, and after `close`."""
        lm = self._lm
        total = self.length + len(ids)
        if self._room < 0:
            raise TeacherError("this sequence was closed. Open another with session().")
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= lm.decoder.rows:
            raise TeacherError(f"there are {len(ids)} token ids to read; allowed are ids from 0 to {lm.vocab - 1}.")
        if lm.max_context is not None and total > lm.max_context:
            raise TeacherError(
                f"the sequence would have {total} tokens; {lm.name} reads at most {lm.max_context}. Shorten the prompt."
            )
        outputs = self._run(ids, total)
        self.length = total
        return torch.from_numpy(outputs)[0, :, : lm.vocab]

    @property
    def token_bytes(self) -> int:
        decoder = self._lm.decoder
        return 2 * decoder.layers * decoder.heads * decoder.size * 4  # float32: others are refused

    def close(self) -> None:
        self._cache, self._room = [], -1

    def _run(self, ids: np.ndarray, total: int) -> np.ndarray:
        runtime, shares = self._lm.runtime, self._lm.decoder.shares_cache
        if not self._cache or (shares and total > self._room):
            self._grow(total)
        binding = runtime.io_binding()
        binding.bind_cpu_input("input_ids", ids.astype(np.int64)[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(self.length, total, dtype=np.int64)[None])
        binding.bind_output("logits", "cpu")
        for name, value in zip(self._names, self._cache, strict=True):
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            if shares:
                binding.bind_ortvalue_output(f"present.{name}", value)
            else:
                binding.bind_output(f"present.{name}", "cpu")
        with _runtime_errors(self._lm.decoder.path):
            runtime.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        if not shares:
            self._cache = list(outputs[1:])
        return outputs[0].numpy()

    def _grow(self, total: int) -> None:
        """Room for `total` tokens and as many again; what was read moves along."""
        from onnxruntime import OrtValue

        decoder = self._lm.decoder
        room = 0
        if decoder.shares_cache:
            room = max(2 * total, total + ROOM)
            room = max(min(room, self._lm.max_context or room), total)
        old = [value.numpy() for value in self._cache] if self.length else [None] * len(self._names)
        cache = []
        for past in old:
            array = np.zeros((1, decoder.heads, room, decoder.size), np.float32)
            if past is not None:
                array[:, :, : self.length] = past[:, :, : self.length]
            cache.append(OrtValue.ortvalue_from_numpy(array))
        self._cache, self._room = cache, room


class _runtime_errors:
    """onnxruntime's errors have no common class: inside, those of its module become TeacherError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if (kind is not None and kind.__module__.startswith("onnxruntime.")) or kind in (RuntimeError, ValueError):
            why = " ".join(str(error).split())[:300]
            raise TeacherError(
                f"onnxruntime cannot run {self._path}: {why}. Export the model again, or update onnxruntime."
            ) from error


def _runtime(decoder: onnx_check.OnnxDecoder, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; nothing is printed
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with _runtime_errors(decoder.path):
        return onnxruntime.InferenceSession(str(decoder.path), options, providers=["CPUExecutionProvider"])


# ---- what lies beside the graph --------------------------------------------------------------------------------------


def _settings(path: Path) -> dict[str, Any]:
    """A JSON file's values; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"{path} is not readable ({error}). Export the model again.") from error
    if not isinstance(values, dict):
        raise TeacherError(f"{path} holds {type(values).__name__}, not a table of settings. Export the model again.")
    return values


def _end_ids(found: Any, path: Path) -> list[int]:
    ids = [] if found is None else list(found) if isinstance(found, list | tuple) else [found]
    if not all(isinstance(each, int) and each >= 0 for each in ids):
        raise TeacherError(f"{path} ends replies at {found!r}; allowed are token ids. Export the model again.")
    return ids


def _max_context(config: dict[str, Any]) -> int | None:
    inner = config.get("text_config")
    for values in (inner if isinstance(inner, dict) else {}, config):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(values.get(key), int) and values[key] > 0:
                return values[key]
    return None
