"""An exported GGUF file as a model in this process: llama.cpp through the bindings of cyllama.

This is the only door through which such a file reaches llama.cpp here. Its head is checked first (`gguf_header.py`).
Text goes through the folder's own tokenizer.json, as everywhere; that llama.cpp would make the same tokens of it is
checked when a model is opened, because that is what users of the file outside will get.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from array import array
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.errors import MissingExtra, TeacherError
from limbeck.models.config_check import refuse_excess
from limbeck.models.gguf_header import file_fingerprint, read_header
from limbeck.models.sampling import TokenDecoder, reply_of, write_all
from limbeck.system.device import prepare_cpu
from limbeck.text.tokenizer import load_tokenizer, tokenizer_hash
from limbeck.types import GeneratedToken, Reply, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FILE = "model.gguf"
STEP = 512
"""Most tokens that are computed at once."""

TOGETHER = 8
"""Most replies that are written in step."""

ROOM = 1024
"""Positions that a new sequence has room for; it doubles when they are used up, up to the model's own context."""

TRIAL_SECONDS = 120.0
TRIAL = """
import sys
from cyllama.llama import llama_cpp as cpp
class Model(cpp.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)
cpp.disable_logging()
settings = cpp.LlamaContextParams()
settings.n_ctx = settings.n_batch = settings.n_ubatch = 32
cpp.LlamaContext(Model(sys.argv[1], cpp.LlamaModelParams(), verbose=False), settings, verbose=False)
"""
"""Weights are mapped there, not read, and no token is computed: 0.4 s for 92 MiB."""

ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
PROBES = (
    "The quick brown fox doesn't jump over 13 lazy dogs, it'll sleep.",
    "x = [1, 23, 456, 7890]\n\tif x:\n\n\n        return  'a\\tb'   # done\r\n",
    "Füße, naïve café, Привет, 東京タワー, 👩‍🚀 ½ ٣ x² \u00a0 end  ",
    "DON'T we've I'M he'd\n \n  \n<b>&amp;</b> {{x}} http://a.b/c?d=e#f_g",
)
"""Texts whose tokens must be the same in llama.cpp: digits, spaces, lines, contractions, scripts, symbols."""


@dataclass(frozen=True, eq=False)
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
        refuse_excess(file, header)
        if find_spec("cyllama") is None:
            raise MissingExtra("cyllama", "llamacpp", f"running {file.name}")
        if not (file.parent / "tokenizer.json").is_file():
            raise TeacherError(
                f"{file.parent} has no tokenizer.json beside {file.name}. Export writes both; a .gguf file alone opens "
                "with limbeck.open_lm(FILE), which imports it."
            )
        _try_elsewhere(file)
        prepare_cpu()
        tokenizer = load_tokenizer(str(file.parent))
        try:
            settings = _bindings().cpp.LlamaModelParams()
            settings.use_mmap = False  # a mapped file that is cut short ends the process by SIGBUS
            model = _bindings().model(str(file), settings, verbose=False)
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
        """`sampling.n` replies to each prompt, up to TOGETHER at once: each token of all of them is one computation.
        Deterministic given `sampling.seed` and the batch. Raises TeacherError beyond the model's context."""
        jobs = [(prompt, index) for prompt in prompts for index in range(sampling.n)]
        if len(jobs) == 1:
            return write_all(self, prompts, sampling)
        replies: list[Reply] = []
        for start in range(0, len(jobs), TOGETHER):
            replies += _write_together(self, jobs[start : start + TOGETHER], sampling)
        return [replies[start : start + sampling.n] for start in range(0, len(replies), sampling.n)]

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
        """A context with room for at least `room` positions of one sequence, empty: a spare one, or a new one."""
        with self.lock:
            for index, context in enumerate(self.spare):
                if context.n_ctx >= room:
                    return self.spare.pop(index)
        return self.make_context(room, 1)

    def make_context(self, room: int, num: int) -> Any:
        """A new context for `num` sequences of up to `room` positions each. Raises TeacherError without the memory."""
        cpp = _bindings().cpp
        settings = cpp.LlamaContextParams()
        settings.n_ctx, settings.n_seq_max = room * num, num
        settings.n_batch = settings.n_ubatch = min(STEP + num - 1, room * num)
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.no_perf = True
        try:
            return cpp.LlamaContext(self.model, settings, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise TeacherError(f"llama.cpp has no memory for {num} sequences of {room} tokens: {error}.") from error

    def compute(self, context: Any, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Read tokens, each with its position, its sequence, and whether logits are wanted behind it: at most as many
        as a context takes at once (`n_batch`)."""
        batch = _bindings().cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for token, position, sequence, wanted in tokens:
            batch.add(token, position, [sequence], wanted)
        context.decode(batch)

    def row(self, context: Any, index: int) -> Tensor:
        """logits_V (fp32) behind the token of that number in the last batch. The bindings hand out a list, which an
        array takes up in half the time that numpy needs, and in a tenth of torch's."""
        return torch.frombuffer(array("f", context.get_logits_ith(index)), dtype=torch.float32)[: self.vocab]

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

    @property
    def token_bytes(self) -> int:
        return -(-self._context.get_state_seq_size(0) // self.num)

    def close(self) -> None:
        """Give its memory back."""
        if self._context is not None:
            self.lm.give_back(self._context)
            self._context = None

    def _decode(self, ids: np.ndarray, *, every: bool) -> None:
        """Compute `ids`, keeping logits behind all of them or behind the last."""
        tokens = _checked(self.lm, ids, self.num)
        self._make_room(len(tokens))
        _read(self.lm, self._context, tokens, self.num, every=every)
        self.num += len(tokens)

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
        return self.lm.row(self._context, index)


def _checked(lm: LlamaLM, ids: np.ndarray, num: int) -> list[int]:
    """Tokens that can follow `num` others. Raises TeacherError where they cannot."""
    tokens = [int(token) for token in ids]
    if not tokens or min(tokens) < 0 or max(tokens) >= lm.model.n_vocab:
        raise TeacherError(f"a sequence takes one or more token ids below {lm.model.n_vocab}, not {tokens[:4]}.")
    if lm.max_context is not None and num + len(tokens) > lm.max_context:
        raise TeacherError(
            f"{lm.name} reads at most {lm.max_context} tokens; these are {num + len(tokens)}. Shorten the prompt, or "
            "ask for fewer tokens."
        )
    return tokens


def _read(lm: LlamaLM, context: Any, tokens: list[int], num: int, *, every: bool = False, sequence: int = 0) -> None:
    """Append `tokens` to a sequence of `num`, as many at once as the context takes. Logits stay of the last batch:
    behind every token, or behind the last."""
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        placed = enumerate(part, start=start)
        lm.compute(context, [(token, num + at, sequence, every or at == len(tokens) - 1) for at, token in placed])


def _write_together(lm: LlamaLM, jobs: list[tuple[np.ndarray, int]], sampling: Sampling) -> list[Reply]:
    """A reply to each prompt with its draw index, token by token in step."""
    prompts = [_checked(lm, prompt, 0) for prompt, _ in jobs]
    writers = [TokenDecoder(lm.tokenizer, prompt, sampling, lm.end_ids, draw_index=index) for prompt, index in jobs]
    written: list[list[GeneratedToken]] = [[] for _ in jobs]
    room = max(map(len, prompts)) + sampling.max_tokens
    with contextlib.closing(lm.make_context(min(room, lm.max_context or room), len(jobs))) as context:
        waiting: dict[int, Tensor] = {}
        for job, tokens in enumerate(prompts):
            _read(lm, context, tokens, 0, sequence=job)
            waiting[job] = lm.row(context, -1)
        while waiting:
            for job, logits_V in waiting.items():
                written[job].append(writers[job].write(logits_V))
            going = [job for job in waiting if not written[job][-1].finish_reason]
            waiting = _step(lm, context, {job: (prompts[job], written[job]) for job in going})
    return [reply_of(ones) for ones in written]


def _step(lm: LlamaLM, context: Any, going: dict[int, tuple[list[int], list[GeneratedToken]]]) -> dict[int, Tensor]:
    """Read the last token of each reply under way, all in one batch: the logits behind them."""
    if not going:
        return {}
    tokens = []
    for job, (prompt, ones) in going.items():
        place = len(prompt) + len(ones) - 1
        _checked(lm, np.array([ones[-1].id]), place)
        tokens.append((ones[-1].id, place, job, True))
    lm.compute(context, tokens)
    return {job: lm.row(context, index) for index, job in enumerate(going)}


def _try_elsewhere(file: Path) -> None:
    """Open the file in another process first: what llama.cpp asserts, it asserts by ending its process. Raises
    TeacherError where it did, or came to no end; what it merely refuses is told where the file is opened."""
    command, quiet = [sys.executable, "-c", TRIAL, str(file)], {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=TRIAL_SECONDS, env=quiet, check=False)
    except subprocess.TimeoutExpired as error:
        raise TeacherError(f"llama.cpp did not open {file} within {TRIAL_SECONDS:g} s. Export it again.") from error
    if done.returncode < 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if "ASSERT" in line]
        raise TeacherError(
            f"llama.cpp ends its process on {file} (signal {-done.returncode}; {' '.join(said)[-200:] or 'no word'}). "
            "Export it again, or copy it anew; a stranger's file may be crafted."
        )


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
