"""An exported GGUF file as a model in this process: llama.cpp through the bindings of cyllama.

This is the only door through which such a file reaches llama.cpp here. Its head is checked first (`gguf_header.py`).
Text goes through the folder's own tokenizer.json, as everywhere; that llama.cpp would make the same tokens of it is
checked when a model is opened, because that is what users of the file outside will get.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.device import prepare_cpu
from limbeck.errors import MissingExtra, TeacherError
from limbeck.lms.gguf_header import file_fingerprint, read_header
from limbeck.lms.writing import write_all
from limbeck.text import load_tokenizer, tokenizer_hash
from limbeck.types import Cap, Reply, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FILE = "model.gguf"
CAPS = frozenset({Cap.GENERATE, Cap.REPLY_LOGP, Cap.TOP_LOGP, Cap.FULL_LOGITS})
STEP = 512
"""Most tokens that are computed at once."""

ROOM = 1024
"""Positions that a new sequence has room for; it doubles when they are used up, up to the model's own context."""

ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
PROBES = (
    "The quick brown fox doesn't jump over 13 lazy dogs, it'll sleep.",
    "x = [1, 23, 456, 7890]\n\tif x:\n\n\n        return  'a\\tb'   # done\r\n",
    "Füße, naïve café, Привет, 東京タワー, 👩‍🚀 ½ ٣ x² \u00a0 end  ",
    "DON'T we've I'M he'd\n \n  \n<b>&amp;</b> {{x}} http://a.b/c?d=e#f_g",
)
"""Texts whose tokens must be the same in llama.cpp: digits, spaces, lines, contractions, scripts, symbols."""


@dataclass(frozen=True)
class LlamaLM:
    """A GGUF file in llama.cpp. `spare` keeps the memory of one sequence that ended for the next."""

    name: str
    fingerprint: str
    tokenizer_hash: str
    tokenizer: PreTrainedTokenizerBase
    vocab: int
    max_context: int | None
    end_ids: list[int]
    model: Any  # cyllama's LlamaModel
    caps: frozenset[Cap] = CAPS
    spare: list[Any] = field(default_factory=list, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> LlamaLM:
        """Open an exported folder (`model.gguf` with its tokenizer beside it), or a .gguf file in such a folder.

        Raises TeacherError for a file that is missing, damaged or refused by llama.cpp, or whose tokens are not those
        of the tokenizer beside it; MissingExtra without cyllama.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise TeacherError(f"there is no file {file}; allowed are a folder with {FILE}, or a .gguf file.")
        header = read_header(file)
        if find_spec("cyllama") is None:
            raise MissingExtra("cyllama", "llamacpp", f"running {file.name}")
        if not (file.parent / "tokenizer.json").is_file():
            raise TeacherError(
                f"{file.parent} has no tokenizer.json beside {file.name}. Export writes both; a .gguf file alone opens "
                "with limbeck.open_lm(FILE), which imports it."
            )
        prepare_cpu()
        tokenizer = load_tokenizer(str(file.parent))
        try:
            model = _bindings().model(str(file), _bindings().cpp.LlamaModelParams(), verbose=False)
        except (ValueError, RuntimeError, OSError) as error:
            raise TeacherError(
                f"llama.cpp does not open {file} (architecture {header.arch!r}): {error}. Is it damaged, or of a newer "
                "kind than this llama.cpp knows (pip install --upgrade cyllama)?"
            ) from error
        ends = [header.values[key] for key in ENDS if key in header.values]
        vocab = min(model.n_vocab, len(tokenizer))
        context = header.of_arch("context_length")
        lm = cls(
            name=str(path),
            fingerprint=file_fingerprint(file, header),
            tokenizer_hash=tokenizer_hash(tokenizer),
            tokenizer=tokenizer,
            vocab=vocab,
            max_context=context if isinstance(context, int) else None,
            end_ids=ends or ([tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []),
            model=model,
        )
        lm._refuse_other_tokens(file)
        return lm

    def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
        """`sampling.n` replies to each prompt, one after the other. Deterministic given `sampling.seed`."""
        return write_all(self, prompts, sampling)

    def logits(self, ids: np.ndarray) -> Tensor:
        """logits_TV of one sequence, fp32 on the CPU, real tokens only: row t predicts token t + 1."""
        with contextlib.closing(self.session()) as session:
            return session.read(ids)

    def session(self) -> LlamaSession:
        """A new sequence, empty."""
        return LlamaSession(self)

    def llama_tokens(self, text: str) -> list[int]:
        """The tokens that llama.cpp itself makes of a text, special ones in it included."""
        return list(self.model.get_vocab().tokenize(text, True, True))

    def _refuse_other_tokens(self, file: Path) -> None:
        for text in (*PROBES, *(f"a{name} b" for name in self.tokenizer.all_special_tokens[:8])):
            ours: Any = self.tokenizer(text, verbose=False)["input_ids"]
            theirs = self.llama_tokens(text)
            if list(ours) != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
                raise TeacherError(
                    f"llama.cpp makes other tokens of {text!r} than the tokenizer.json beside {file}: from token {at} "
                    f"on {theirs[at : at + 4]} instead of {list(ours)[at : at + 4]}. The file belongs to another "
                    "tokenizer, or names a wrong rule for splitting text (tokenizer.ggml.pre)."
                )

    # ---- memory of sequences ----

    def borrow(self, room: int) -> Any:
        """A context with room for at least `room` positions, empty: a spare one, or a new one."""
        with self.lock:
            for index, context in enumerate(self.spare):
                if context.n_ctx >= room:
                    return self.spare.pop(index)
        cpp = _bindings().cpp
        settings = cpp.LlamaContextParams()
        settings.n_ctx = room
        settings.n_batch = settings.n_ubatch = min(STEP, room)
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.no_perf = True
        try:
            return cpp.LlamaContext(self.model, settings, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise TeacherError(f"llama.cpp has no memory for a sequence of {room} tokens: {error}.") from error

    def give_back(self, context: Any) -> None:
        context.kv_cache_clear(False)
        with self.lock:
            if not self.spare:
                self.spare.append(context)
                return
        context.close()


class LlamaSession:
    """One sequence with its own memory, which grows as the sequence does."""

    def __init__(self, lm: LlamaLM) -> None:
        self.lm, self.num = lm, 0
        self._context: Any = None

    def feed(self, ids: np.ndarray) -> Tensor:
        """Append `ids` (at least one): logits_V for the token that follows. Raises TeacherError beyond the model's
        context, or for an id that it does not have."""
        self._decode(ids, every=False)
        return self._row(-1)

    def read(self, ids: np.ndarray) -> Tensor:
        """Append `ids` and return the logits behind each of them: logits_TV."""
        logits_TV = torch.empty(len(ids), self.lm.vocab)
        for start in range(0, len(ids), STEP):
            part = ids[start : start + STEP]
            self._decode(part, every=True)
            for row in range(len(part)):
                logits_TV[start + row] = self._row(row)
        return logits_TV

    def close(self) -> None:
        """Give its memory back."""
        if self._context is not None:
            self.lm.give_back(self._context)
            self._context = None

    def _decode(self, ids: np.ndarray, *, every: bool) -> None:
        """Compute `ids`, at most STEP at once, keeping logits of all of them or of the last."""
        tokens = self._checked(ids)
        self._make_room(len(tokens))
        step = self._context.n_batch
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            batch = _bindings().cpp.LlamaBatch(n_tokens=len(part), embd=0, n_seq_max=1)
            for offset, token in enumerate(part):
                batch.add(token, self.num + offset, [0], every or start + offset == len(tokens) - 1)
            self._context.decode(batch)
            self.num += len(part)

    def _checked(self, ids: np.ndarray) -> list[int]:
        tokens = [int(token) for token in ids]
        if not tokens or min(tokens) < 0 or max(tokens) >= self.lm.model.n_vocab:
            raise TeacherError(
                f"a sequence takes one or more token ids below {self.lm.model.n_vocab}, not {tokens[:4]}."
            )
        limit = self.lm.max_context
        if limit is not None and self.num + len(tokens) > limit:
            raise TeacherError(
                f"{self.lm.name} reads at most {limit} tokens; these are {self.num + len(tokens)}. Shorten the prompt, "
                "or ask for fewer tokens."
            )
        return tokens

    def _make_room(self, count: int) -> None:
        """A context that holds `count` more positions; what was read so far is carried over."""
        need = self.num + count
        if self._context is not None and need <= self._context.n_ctx:
            return
        limit = self.lm.max_context or need
        room = max(need, min(max(ROOM, 2 * need if self._context is not None else 0), limit))
        larger = self.lm.borrow(room)
        if self._context is not None:
            larger.set_state_seq_data(self._context.get_state_seq_data(0), 0)
            self.lm.give_back(self._context)
        self._context = larger

    def _row(self, index: int) -> Tensor:
        """logits_V of one position of the last batch. The bindings hand out a list, which `array` packs fastest."""
        values = array("f", self._context.get_logits_ith(index))
        return torch.from_numpy(np.frombuffer(values, dtype=np.float32)[: self.lm.vocab])


@dataclass(frozen=True)
class _Bindings:
    cpp: Any
    model: type[Any]


@cache
def _bindings() -> _Bindings:
    """cyllama's low-level module, with llama.cpp's own log switched off."""
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """Contexts of cyllama 0.2.18 ask their model for `n_vocab`, which its class does not have."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    return _Bindings(llama_cpp, Model)
