"""Checkpoints: whole or absent, verified before use, of one format whatever the number of processes.

CHECKPOINTS/step-00000120/model.safetensors      trainable parameters and buffers, full tensors
                          optimizer.safetensors  both moments and the step of every parameter
                          state.json             where the run was
                          MANIFEST.json          sizes and SHA-256, written last
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import StoreError
from limbeck.system.atomic import atomic_dir, sweep_all, verify_dir
from limbeck.system.sealed import read_json
from limbeck.train.parallel import assign, barrier, full
from limbeck.types import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from limbeck.types import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitState:
    """Where a run is. Randomness needs no state: every step seeds its own from (seed, step, rank)."""

    step: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    cursor: Cursor = field(default_factory=Cursor)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"cursor": _cursor_json(self.cursor)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> FitState:
        return cls(**{**raw, "cursor": _cursor(raw["cursor"])})


def _cursor_json(cursor: Cursor) -> dict[str, Any]:
    own: dict[str, Any] = {"epoch": cursor.epoch, "index": cursor.index}
    return own | {"parts": [_cursor_json(part) for part in cursor.parts]} if cursor.parts else own


def _cursor(raw: dict[str, Any]) -> Cursor:
    return Cursor(raw["epoch"], raw["index"], tuple(_cursor(part) for part in raw.get("parts", ())))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent buffers as full CPU tensors. A collective under FSDP2."""
    return _gathered({**dict(model.named_parameters()), **_buffers(model)})


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """What changes while the module learns, by the name it has in a checkpoint: trainable parameters, and persistent
    buffers. A student's tensors have the names that they have in the student alone."""
    trainable = {name: param for name, param in module.named_parameters() if param.requires_grad}
    named = {**trainable, **_buffers(module)}
    tensors = {name.removeprefix("student."): tensor for name, tensor in named.items()}
    if len(tensors) < len(named):
        raise StoreError(
            "a part of the student and one beside it share a name in checkpoints; rename the part beside it."
        )
    return tensors


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """The persistent ones."""
    persistent = set(module.state_dict())
    return {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors on the CPU. A collective where they are sharded."""
    return {name: full(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: FitState, ranks: Ranks) -> None:
    """Write one checkpoint of all that is trained in `module` (rank 0) while the other ranks help to gather it."""
    tensors = _trained(module)
    names = {id(tensor): name for name, tensor in tensors.items()}
    states = optimizer.state.items()
    moments = {f"{names[id(param)]}/{key}": value for param, values in states for key, value in values.items()}
    weights, moments = _gathered(tensors), _gathered(moments)
    if ranks.is_first:
        with atomic_dir(folder / f"step-{state.step:08d}") as tmp:
            save_file(weights, tmp / "model.safetensors")
            save_file(moments, tmp / "optimizer.safetensors")
            (tmp / "state.json").write_text(json.dumps(state.as_json()))
    barrier(ranks)


def keep_newest(folder: Path, count: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    on_message: Callable[[str], None],
) -> FitState:
    """Restore the newest sound checkpoint into module and optimizer; a fresh state when there is none.

    A damaged checkpoint is named and skipped for the one before. Raises StoreError when all there are is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep_all(folder)  # before the list: a kill between two renames leaves a checkpoint under another name
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        wrong = verify_dir(path)
        if wrong is None:
            logger.info("resumed from %s", path)
            return _restore(path, module, optimizer)
        logger.info("%s is skipped: %s", path, wrong)
        on_message(f"checkpoint {path.name} is skipped: {wrong}; falling back to the one before")
    if found:
        raise StoreError(
            f"every checkpoint in {folder} is damaged ({', '.join(path.name for path in found)}). "
            f"Delete {folder} to train again from the start; the labels are kept."
        )
    return FitState()


@torch.no_grad()
def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> FitState:
    weights = load_file(path / "model.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    tensors = _trained(module)
    if set(tensors) - set(weights):
        missing = ", ".join(sorted(set(tensors) - set(weights))[:3])
        raise StoreError(
            f"{path} is of another model: it lacks {missing}. Delete the checkpoints folder to start over."
        )
    for name, tensor in tensors.items():
        assign(tensor, weights[name])
    for full_name, value in moments.items():
        name, key = full_name.rsplit("/", 1)
        param = tensors[name]
        if value.ndim == 0:
            optimizer.state[param][key] = value.to(param.device)
        else:
            optimizer.state[param][key] = torch.zeros_like(param)
            assign(optimizer.state[param][key], value)
    return FitState.from_json(read_json(path / "state.json", "Remove this checkpoint: the one before is used."))
