"""A causal language model in this process, through transformers.

The fused loss needs hidden rows and a head, not logits. Whether `head(hidden)` is what the model itself computes is not
assumed but proven when a model is opened: a family that does something else after its last norm is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel

from limbeck.errors import TeacherError
from limbeck.losses.chunked import cut_head, iter_logits
from limbeck.models.attention import PACKED, register_packed
from limbeck.models.generation import FiniteLogits, joined_ids, shaping_defaults, tokenizer_ends, without_defaults
from limbeck.models.gguf_import import resolve_model
from limbeck.models.int8 import is_quantized, plain
from limbeck.models.loading import load_model, refuse_folder
from limbeck.models.proof import prove
from limbeck.models.rotary import length_bound, turned_alone, turned_anew
from limbeck.models.sampling import write_all
from limbeck.models.vocabulary import VocabSizes, vocab_sizes
from limbeck.system.device import pick_device, prepare_cpu, resolve_dtype
from limbeck.text.tokenizer import load_tokenizer, tokenizer_hash
from limbeck.types import Batch, Head, Reply, Sampling, Vocab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def head_layer(model: PreTrainedModel) -> Any:
    """The module whose `weight` (and perhaps `bias`) makes logits. Raises TeacherError when the model has none."""
    layer = model.get_output_embeddings()
    if layer is None:
        family = model.config.model_type
        raise TeacherError(f"the model family {family!r} has no output head; allowed are causal language models.")
    return layer


def head_of(model: PreTrainedModel) -> Head:
    """The model's output head and what its family does to logits after it."""
    layer = head_layer(model)
    config: Any = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), softcap, float(scale))


def packed_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden rows (after the final norm) at the supervised positions: hidden_ND. Gradients flow. Each document's
    are what they would be alone."""
    with turned_alone(model, batch.lengths):
        out = model.get_decoder()(
            input_ids=batch.ids_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            segment_lengths=batch.lengths,
        )
    return out.last_hidden_state[0].index_select(0, batch.rows_N)


@contextlib.contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, the model attends as the registered function of that name does; afterwards it is as it was. Raises
    ValueError where it does not let its attention be replaced."""
    before = str(model.config._attn_implementation)
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError("its attention cannot be replaced")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(model: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """Inside, the model attends within documents of packed rows; afterwards it is as it was."""
    register_packed()
    return attending(model, PACKED)


@dataclass(frozen=True)
class HfLM:
    """A model with its tokenizer, frozen and in eval mode."""

    name: str
    fingerprint: str
    tokenizer_hash: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    told: tuple[str, ...] = ()  # what opening it found that a user should know

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        device: torch.device | None = None,
    ) -> HfLM:
        """Open a hub id, a folder, a .gguf file or the demo teacher, frozen and in eval mode.

        Raises TeacherError when there is no such model, when it is stored as pickle only, or when its family computes
        logits in a way that the fused path does not reproduce.
        """
        begun = time.monotonic()
        prepare_cpu()
        device = device or pick_device()
        folder = resolve_model(str(path))
        refuse_folder(Path(folder))
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        found = load_model(
            folder, name=str(path), dtype=resolve_dtype(dtype, device), trust_remote_code=trust_remote_code
        )
        model = found.model
        model.to(device)  # type: ignore[arg-type]
        lm = replace(cls.wrap(model, tokenizer, name=str(path)), told=found.notes)
        seconds = time.monotonic() - begun
        logger.info("opened %s in %.1f s: %s in %s on %s", path, seconds, model.config.model_type, lm.dtype, device)
        return lm

    @classmethod
    def wrap(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> HfLM:
        """A frozen LM around a model that is already in memory; checks it as `open` does."""
        model.eval().requires_grad_(False)
        refuse_unsupported(model)
        return cls(name, weights_fingerprint(model), tokenizer_hash(tokenizer), tokenizer, model)

    @property
    def device(self) -> torch.device:
        return head_layer(self.model).weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def sizes(self) -> VocabSizes:
        """Tokens of the tokenizer, and rows of the embedding and the head."""
        return vocab_sizes(self.tokenizer, self.model)

    @property
    def vocab(self) -> int:
        """Real tokens: heads are often padded beyond the tokenizer (Qwen2.5: 151,936 or 152,064 rows for 151,665)."""
        return self.sizes.real

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user of this model should read."""
        set_aside = shaping_defaults(self.model.generation_config)
        if not set_aside:
            return self.told
        named = ", ".join(f"{name}={value}"[:60] for name, value in set_aside.items())
        said = f"{self.name}: its generation_config.json sets {named}; not used, replies are drawn as the recipe says"
        return (*self.told, said)

    @property
    def columns(self) -> Vocab:
        """What the columns of the head are: the tokenizer's tokens."""
        return Vocab(self.vocab, self.tokenizer_hash)

    @property
    def head(self) -> Head:
        """The head, cut to the real tokens."""
        return cut_head(head_of(self.model), self.vocab)

    @property
    def max_context(self) -> int | None:
        """Longest sequence the model was made for, in tokens; None when its config does not say."""
        config: Any = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    def leave_files(self) -> None:
        """Copy weights that are a mapping of their file: a file that is written over or cut short ends the process by
        SIGBUS at the next token, and the other models in it."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.device.type == "cpu" and not is_quantized(tensor):
                tensor.data = tensor.data.clone()

    def hidden(self, batch: Batch) -> Tensor:
        """hidden_ND at `batch.rows_N`; documents do not see each other. No gradient."""
        with torch.no_grad(), packed_attention(self.model):
            return packed_hidden(self.model, batch)

    def logits(self, ids: np.ndarray) -> Tensor:
        """logits_TV of one sequence, fp32 on the CPU, real tokens only: row t predicts token t + 1."""
        ids_T = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        rows_T = torch.arange(len(ids), device=self.device)
        hidden_TD = self.hidden(Batch(ids_T, rows_T, (len(ids),), rows_T, ids_T))
        logits_TV = torch.empty(len(ids), self.vocab)
        for part, logits_nV in iter_logits(hidden_TD, self.head):
            logits_TV[part] = logits_nV.cpu()
        return logits_TV

    def session(self) -> HfSession:
        """A new sequence, empty, with transformers' own cache of keys and values."""
        return HfSession(self)

    def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
        """`sampling.n` replies to each prompt, as one batch; real tokens only, drawn as `sampling` says and as nothing
        else does. Deterministic given `sampling.seed` and the batch. Raises TeacherError for logits that are not
        numbers."""
        width = max(len(prompt) for prompt in prompts)
        bound = length_bound(self.model.config)
        if bound is not None and width + sampling.max_tokens > bound:
            return write_all(self, prompts, sampling)  # a batch, and a cache, would mix positions of several lengths
        pad = self.tokenizer.pad_token_id
        pad = pad if isinstance(pad, int) else 0
        ids_BT = torch.full((len(prompts), width), pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask_BT[row, width - len(prompt) :] = 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), without_defaults(self.model, self.end_ids):
            torch.manual_seed(sampling.seed)
            generate: Any = self.model.generate
            out_BT = generate(
                ids_BT.to(self.device),
                attention_mask=mask_BT.to(self.device),
                generation_config=self._generation(sampling, pad),
                logits_processor=LogitsProcessorList([FiniteLogits(self.model)]),
                **({"tokenizer": self.tokenizer} if sampling.stop else {}),
            )
        replies = [self._reply(row[width:].cpu().numpy(), sampling) for row in out_BT]
        return [replies[i : i + sampling.n] for i in range(0, len(replies), sampling.n)]

    def _generation(self, sampling: Sampling, pad: int) -> GenerationConfig:
        greedy = sampling.temperature == 0
        drawn: dict[str, float] = (
            {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        )
        return GenerationConfig(
            do_sample=not greedy,
            num_return_sequences=sampling.n,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self.end_ids or None,
            pad_token_id=pad,
            stop_strings=list(sampling.stop) or None,
            suppress_tokens=list(range(self.vocab, self.sizes.head)) or None,
            **drawn,
        )

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a reply."""
        told: Any = self.model.generation_config.eos_token_id if self.model.generation_config else None
        return joined_ids(told, self.own_ends)

    @cached_property
    def own_ends(self) -> list[int]:
        """Those that the tokenizer names, whatever the generation config says."""
        return tokenizer_ends(self.tokenizer)

    def _reply(self, ids: np.ndarray, sampling: Sampling) -> Reply:
        """Cut what follows the first end token or stop string (padding), and say why the reply ended."""
        ends = np.flatnonzero(np.isin(ids, self.end_ids))
        stopped = len(ends) > 0
        if stopped:
            ids = ids[: ends[0] + 1]
        if sampling.stop and self._contains(ids, sampling.stop):
            stopped = True
            low, high = 1, len(ids)  # the shortest prefix that contains a stop string
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._contains(ids[:middle], sampling.stop) else (middle + 1, high)
            ids = ids[:low]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Reply(ids.astype(np.int32), text, "stop" if stopped else "length")

    def _contains(self, ids: np.ndarray, stops: tuple[str, ...]) -> bool:
        text = str(self.tokenizer.decode(ids))
        return any(stop in text for stop in stops)


class HfSession:
    """One sequence under way. Only its last row goes through the head."""

    def __init__(self, lm: HfLM) -> None:
        self._lm, self._head = lm, lm.head
        self._forward: Any = lm.model.get_decoder()
        names = inspect.signature(self._forward.forward).parameters
        self._name = "cache" if "cache" in names else "past_key_values"  # the newer name, and the older
        self._cache: DynamicCache | None = DynamicCache(config=lm.model.config)
        self._all = np.zeros(0, dtype=np.int64)

    def feed(self, ids: np.ndarray) -> Tensor:
        """Append `ids` (at least one) and return logits_V for the token that follows."""
        before, self._all = len(self._all), np.concatenate([self._all, ids.astype(np.int64)])
        new = self._all[before:]
        if before and turned_anew(self._lm.model, before, len(self._all)):
            self._cache, new = DynamicCache(config=self._lm.model.config), self._all  # keys of what was read turn too
        ids_T = torch.from_numpy(new).to(self._lm.device)
        with torch.no_grad(), turned_alone(self._lm.model, (len(new),)):
            out = self._forward(input_ids=ids_T[None], use_cache=True, **{self._name: self._cache})
            last_1D = out.last_hidden_state[0, -1:]
            return next(logits_1V[0].clone() for _, logits_1V in iter_logits(last_1D, self._head)).cpu()

    @property
    def token_bytes(self) -> int:
        layers = self._cache.layers if self._cache else []
        tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        return -(-held // len(self._all))

    def close(self) -> None:
        """Give the cache back."""
        self._cache = None


def weights_fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits over config class, every tensor's name, shape, dtype and 64 of its values."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = plain(tensor.detach()).flatten()
        step = max(flat.numel() // 64, 1)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise TeacherError, naming the family, unless packed hidden rows and the head give the model's own logits."""

    def packed_logits(batch: Batch) -> Tensor:
        with packed_attention(model):
            return torch.cat([z.clone() for _, z in iter_logits(packed_hidden(model, batch), head_of(model))])

    head_layer(model)
    prove(model, packed_logits)
