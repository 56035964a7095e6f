"""Ranks: who this process is, how the module is wrapped, and the few collectives that the loop needs.

FSDP2's parameters are DTensors; everything that leaves the loop (checkpoints, artifacts) is full tensors, so a run can
go on with another number of processes.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from limbeck.errors import RecipeError
from limbeck.models.hf import head_layer, packed_hidden
from limbeck.system.ranks import Launch, launch
from limbeck.types import Batch, Ranks

PROBE_TOKENS = 8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.train.distiller import Distiller


JOINING = timedelta(minutes=30)
"""The first process may have a large store to look through before it joins."""


def refuse_launch(kind: str, accumulate: int = 0) -> Launch | None:
    """What torchrun said, where ranks train together. Raises RecipeError when it and the recipe disagree: a run asks
    before it begins, since labelling may take days."""
    launched = launch()
    if kind == "none" and launched and launched.world > 1:
        raise RecipeError(
            f"torchrun started {launched.world} processes but train.parallel is none; set it to ddp or fsdp2."
        )
    if kind == "none":
        return None
    if launched is None:
        raise RecipeError(
            f"train.parallel is {kind} but this is a single process; start it with "
            "`torchrun --nproc-per-node N -m limbeck ...`, or set train.parallel to none."
        )
    if accumulate % launched.world:
        raise RecipeError(
            f"train.accumulate is {accumulate} but there are {launched.world} processes; it counts micro-batches over "
            f"all of them, so it must be a multiple of {launched.world}."
        )
    return launched


@contextlib.contextmanager
def join_ranks(kind: str) -> Iterator[Ranks]:
    """Join the process group that torchrun described. Raises RecipeError when the recipe and the launch disagree."""
    launched = refuse_launch(kind)
    if launched is None:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(launched.local_rank)
    _join(launched)
    try:
        yield Ranks(kind, dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a rank that leaves early tears down what the others still use
    finally:
        dist.destroy_process_group()


def _join(launched: Launch) -> None:
    """Meet the other processes of this start. torchrun keeps one store for all of its restarts, with the addresses of
    processes that are dead by then: who finds those waits for nobody, so every start writes under a name of its own."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=JOINING))
        own = PrefixStore(f"limbeck-{launched.restarts}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=JOINING)
    except dist.DistError as error:
        raise RecipeError(
            f"{launched.world} processes were announced, and did not meet within {JOINING.total_seconds() / 60:g} "
            f"minutes: {error}. Stop those that are left, and start all of them again; training resumes."
        ) from error


def wrap(distiller: Distiller, ranks: Ranks) -> nn.Module:
    """DDP around, FSDP2 into, or nothing at all."""
    if ranks.kind == "ddp":
        return DistributedDataParallel(distiller, find_unused_parameters=has_idle_parameters(distiller))
    if ranks.kind == "fsdp2":
        for block in decoder_blocks(distiller.student):
            fully_shard(block)
        fully_shard(distiller)
    return distiller


def has_idle_parameters(distiller: Distiller) -> bool:
    """Whether some trainable parameter gets no gradient from a text of a few tokens: a vision tower, a bias that only
    chooses experts. DDP waits for the gradient of each, unless it is told to look. Gradients are dropped again."""
    head = head_layer(distiller.student)
    device = head.weight.device
    ids_T = torch.arange(PROBE_TOKENS, device=device)
    batch = Batch(ids_T, ids_T, (PROBE_TOKENS,), ids_T, ids_T)
    head(packed_hidden(distiller.student, batch)).sum().backward()
    trained = [param for param in distiller.student.parameters() if param.requires_grad]
    idle = any(param.grad is None for param in trained)
    for param in trained:
        param.grad = None
    return idle


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the elements of the longest ModuleList."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Gradients of all but the last micro-batch of a step stay local."""
    if isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(enabled)
    yield


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    if ranks.world == 1:
        return values
    on_device = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(on_device)
    return on_device.cpu()


def agree(stop: bool, due: bool, ranks: Ranks) -> tuple[bool, bool]:
    """What all ranks do together: stop when any was asked to, save when the first rank's clock says so."""
    votes = sum_over_ranks(torch.tensor([float(stop), float(due and ranks.is_first)]), ranks)
    return bool(votes[0] > 0), bool(votes[1] > 0)


def barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        dist.barrier()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, whether it is sharded or not (a collective when it is)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(into: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    whole = whole.to(into.device, into.dtype)
    if isinstance(into, DTensor):
        whole = distribute_tensor(whole, into.device_mesh, into.placements)
    into.copy_(whole)
