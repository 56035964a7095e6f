"""The types that travel between rooms.

Shape letters used in every tensor name of the project:
`T` tokens of a packed row, `N` supervised positions, `K` support of a stored distribution, `V` vocabulary, `D` hidden.

Only supervised positions exist below `Batch`: hidden rows, targets, labels and weights are all (N, ...). There are no
masks, no padding, no shift and no ignore index in any loss or metric.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import torch
    from torch import Tensor

Span = tuple[int, int]
"""Half-open range [start, end) of token indices that are *predicted*: token j is predicted from hidden row j - 1."""


@dataclass(frozen=True)
class Row:
    """One example of the transfer set, made tokens by `text.encode`: the input of labelling, training and evaluation.

    `ids` are all token ids of the row; `spans` are the ranges of tokens that are supervised (start >= 1);
    `split` is "train" or "heldout". `id` is a hash of the content, so duplicates share it. `source` says where it came
    from ("file.jsonl:17") for error messages. `text` is the rendered text. `messages` is the conversation up to the
    reply as JSON, "" for plain text: what a teacher behind an interface is asked. `reference` is what a right answer is
    compared with, "" where there is none.
    """

    id: str
    split: str
    topic: str
    text: str
    ids: np.ndarray  # int32 [T]
    spans: tuple[Span, ...]
    source: str
    messages: str = ""
    reference: str = ""

    @property
    def num_supervised(self) -> int:
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True)
class Trace:
    """One example as one LM saw it: one row of a store.

    `id` hashes (row id, LM, sampling, draw). `context_hash` hashes exactly the token ids and spans that the stored
    distributions were computed on; a reader refuses to apply them to anything else.
    """

    id: str
    row_id: str
    split: str
    topic: str
    text: str
    ids: np.ndarray  # int32 [T]: prompt and reply
    spans: tuple[Span, ...]
    lm: str  # fingerprint of the LM
    tokenizer: str  # hash of its tokenizer
    context_hash: str
    meta: dict[str, Any] = field(default_factory=dict)  # draw, finish_reason, sampling ...

    @property
    def num_supervised(self) -> int:
        return sum(end - start for start, end in self.spans)


Offers = Literal["sample", "cells", "full"]
"""What a target says of each position: a draw from the teacher, its mass on some tokens and on all others together, or
its mass on every token. Each tells all that those before it tell."""


class Target(Protocol):
    """What a teacher says of N positions, in the columns of the student's head.

    Exactly one of two is there: `full` where `offers` is "full" (heads and hidden rows, from which every token's logit
    is made a chunk of rows at a time), else `cells` (probabilities on a support of some tokens). `knows_entropy`: the
    teacher's own entropy at each position can be had. Slices are views.
    """

    @property
    def offers(self) -> Offers: ...
    @property
    def cells(self) -> Dist | None: ...
    @property
    def full(self) -> Full | None: ...
    @property
    def knows_entropy(self) -> bool: ...
    def __getitem__(self, part: slice, /) -> Self: ...
    def to(self, device: torch.device | str) -> Self: ...


class Full(NamedTuple):
    """Where a full target's logits come from: those of `parts[0]`, or with `log_weights_NM` the logarithm of the
    mixture `sum_m w_m softmax(logits_m)`, whose weights sum to 1 at each position."""

    parts: tuple[LiveTarget, ...]
    log_weights_NM: Tensor | None = None


@dataclass(frozen=True)
class Dist:
    """Next-token distributions for N supervised positions, on a support of at most K tokens each.

    `ids_NK` int64, -1 marks padding of the support; `logp_NK` fp32 log-probabilities (minus infinity on padding);
    `tail_N` fp32 log mass of all tokens outside the support together (minus infinity when the support is complete).
    exp(logp).sum(-1) + exp(tail) == 1. `entropy_N` is the teacher's full entropy in nats where the support is a random
    sample: it makes the reported divergence unbiased, and never touches a gradient. `spread` says that the tail's mass
    lies evenly on all tokens outside the support (biased; for comparison).
    """

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor
    entropy_N: Tensor | None = None
    spread: bool = False
    full: None = field(default=None, init=False, repr=False)

    @property
    def offers(self) -> Offers:
        """A sample and a tail that is spread evenly say nothing about single divergences but forward KL."""
        return "sample" if self.entropy_N is not None or self.spread else "cells"

    @property
    def cells(self) -> Dist:
        return self

    @property
    def knows_entropy(self) -> bool:
        return self.entropy_N is not None

    def to(self, device: torch.device | str) -> Dist:
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, part: slice) -> Dist:
        """Some of the positions (views)."""
        return self._each(lambda tensor: tensor[part])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Dist:
        entropy_N = None if self.entropy_N is None else change(self.entropy_N)
        return Dist(change(self.ids_NK), change(self.logp_NK), change(self.tail_N), entropy_N, self.spread)


@dataclass(frozen=True)
class Head:
    """How hidden rows become logits: `softcap(scale * (hidden @ weight.T + bias))`, a column for each row of `weight`.

    `softcap` c means c * tanh(z / c) (Gemma 2); `scale` multiplies (Cohere) or is 1/divisor (Granite).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Vocab:
    """What the columns of a head are: its first `size` rows (the real tokens: heads are often padded), or the rows that
    `rows_V` names, in that order (the words that stand for labels). `identity` says of what: the tokenizer's hash, or a
    hash of the words. Labels and targets count columns, not token ids, where `rows_V` is given.
    """

    size: int
    identity: str = ""
    rows_V: Tensor | None = None


@dataclass(frozen=True)
class LiveTarget:
    """The teacher's full distribution, as its last hidden rows and its head: logits exist only a chunk at a time.

    `hidden_ND` and `weight_VD` in any float dtype, on one device; `D` is the teacher's width, `N` and `V` the student's
    (cut both heads to the real tokens first). Logits are `softcap(logit_scale * (hidden @ weight.T + bias))`. No
    gradient flows into it.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    _: KW_ONLY
    bias_V: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    offers: Offers = field(default="full", init=False, repr=False)
    cells: None = field(default=None, init=False, repr=False)
    knows_entropy: bool = field(default=True, init=False, repr=False)

    @classmethod
    def of(cls, hidden_ND: Tensor, head: Head) -> LiveTarget:
        """Hidden rows and a head that is one already."""
        return cls(hidden_ND, head.weight_VD, bias_V=head.bias_V, softcap=head.softcap, logit_scale=head.scale)

    @property
    def head(self) -> Head:
        return Head(self.weight_VD, self.bias_V, self.softcap, self.logit_scale)

    @property
    def full(self) -> Full:
        return Full((self,))

    def to(self, device: torch.device | str) -> LiveTarget:
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        moved = (self.hidden_ND.to(device), self.weight_VD.to(device))
        return replace(self, hidden_ND=moved[0], weight_VD=moved[1], bias_V=bias_V)

    def __getitem__(self, part: slice) -> LiveTarget:
        """Some of the positions (views)."""
        return replace(self, hidden_ND=self.hidden_ND[part])


@dataclass(frozen=True)
class Batch:
    """What one forward consumes: several documents packed into one row, with boundaries.

    `ids_T`, `positions_T` (restart at 0 in every document); `lengths` of the documents, in order, summing to T;
    `rows_N` indices into T of the hidden rows that predict; `labels_N` the tokens that really follow (ground truth);
    `weights_N` multiply each position's loss, None is all ones; `target` the teacher's distributions, None is CE only.
    """

    ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]
    rows_N: Tensor
    labels_N: Tensor
    target: Target | None = None
    weights_N: Tensor | None = None
    trace_ids: tuple[str, ...] = ()

    @property
    def num_supervised(self) -> int:
        return self.rows_N.numel()


@dataclass(frozen=True)
class Cursor:
    """Where a source goes on: an epoch and the next micro-batch in it, and the places of the sources that it mixes."""

    epoch: int = 0
    index: int = 0
    parts: tuple[Cursor, ...] = ()


class Step(NamedTuple):
    """What one optimizer step consumes. `batches` are this rank's `num_batches`, made one at a time where they can be;
    `num_supervised` positions and `num_tokens` tokens are those of all ranks, known before the first backward pass;
    `cursor` is where the next step begins."""

    batches: Iterable[Batch]
    num_batches: int
    num_supervised: int
    num_tokens: int
    cursor: Cursor


class Source(Protocol):
    """Where steps come from: plain rows, stored or live targets, the student's own words, or a mix of them."""

    def draw(self, cursor: Cursor, count: int, ranks: Ranks) -> Step:
        """The step of `count` micro-batches, over all ranks, that begins at the cursor: the same cursor gives the same
        step."""
        ...

    def epoch_batches(self, epoch: int) -> int | None:
        """Micro-batches of one epoch; None where there is no end."""
        ...


class LossOut(NamedTuple):
    """Sums over the N supervised positions of one batch; `loss` carries the gradient, `terms` do not.

    `terms` by name: "ce" on ground truth; with a teacher "kl", the divergence without the T^2 factor and before mixing;
    and whatever else is minimised beside them. In nats. A tuple, so that DDP and FSDP2 find the tensors in a module's
    output.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    num: int


@dataclass(frozen=True)
class Ranks:
    """This process among `world`; `kind` is none, ddp or fsdp2."""

    kind: str = "none"
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One generated reply: token ids after the prompt (the end token included when it was produced)."""

    ids: np.ndarray  # int32
    text: str
    finish_reason: str  # "stop" or "length"


class Generator(Protocol):
    """What writes replies: teacher, student while sampling, judge, exported file, expert."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_hash(self) -> str: ...

    def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> list[list[Reply]]:
        """`sampling.n` replies for each prompt (token ids). Deterministic given `sampling.seed`."""
        ...


class LocalLM(Generator, Protocol):
    """A generator in this process, whatever runs it: its logits can be had."""

    @property
    def tokenizer(self) -> Any:
        """The PreTrainedTokenizerBase of transformers. (This file knows no model library.)"""
        ...

    @property
    def vocab(self) -> int:
        """Real tokens: heads are often padded beyond the tokenizer."""
        ...

    @property
    def max_context(self) -> int | None: ...

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a reply."""
        ...

    def logits(self, ids: np.ndarray) -> Tensor:
        """logits_TV of one sequence, fp32 on the CPU, real tokens only: row t predicts token t + 1."""
        ...

    def session(self) -> Session:
        """A new sequence, empty. Raises TeacherError where this kind of model cannot write token by token."""
        ...


class Backbone(Protocol):
    """A model that gives hidden rows: what live targets, labelling, evaluation and feature matching need."""

    @property
    def device(self) -> torch.device: ...

    @property
    def head(self) -> Head:
        """What makes logits of hidden rows, cut to the real tokens."""
        ...

    @property
    def columns(self) -> Vocab:
        """What the columns of the head are."""
        ...

    def hidden(self, batch: Batch) -> Tensor:
        """hidden_ND at `batch.rows_N`, after the last norm; documents do not see each other. No gradient."""
        ...


class Session(Protocol):
    """One sequence that is read and written: the model's cache of it."""

    def feed(self, ids: np.ndarray) -> Tensor:
        """Append `ids` (at least one) and return logits_V for the token that follows: fp32, CPU, real tokens only."""
        ...

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values that a token takes, measured on those that were fed: at least one."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class GeneratedToken(NamedTuple):
    """One token of a reply under way, as an engine hands it out.

    `text` is what it adds: "" while a character is incomplete or a stop string may be coming. `logp` and `top` (id,
    log-prob; as many as were asked for) are of the model's own distribution, before temperature and top-p.
    `finish_reason` is "stop" or "length" on the last one, None before.
    """

    id: int
    text: str
    logp: float
    top: tuple[tuple[int, float], ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Progress:
    """One report of a running job. `done` and `total` are in `unit`; `rate` is per second; `eta` in seconds."""

    stage: str
    done: float
    total: float
    unit: str
    rate: float
    eta: float
    values: dict[str, float] = field(default_factory=dict)


class Callbacks(NamedTuple):
    """How a job reports, and how it learns that it should stop."""

    on_progress: OnProgress
    on_message: Callable[[str], None]
    stop_asked: Callable[[], bool]


if TYPE_CHECKING:
    OnProgress = Callable[[Progress], None]
