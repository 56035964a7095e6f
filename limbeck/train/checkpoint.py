"""Checkpoints: whole or absent, verified before use, of one format whatever the number of processes.

CHECKPOINTS/step-00000120/model.safetensors      parameters and buffers, full tensors
                          optimizer.safetensors  both moments and the step of every parameter
                          state.json             where the run was
                          MANIFEST.json          sizes and SHA-256, written last
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import StoreError
from limbeck.system.atomic import atomic_dir, sweep, verify_dir
from limbeck.train.batches import Cursor
from limbeck.train.parallel import Ranks, assign, barrier, full

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitState:
    """Where a run is. Randomness needs no state: every step seeds its own from (seed, step, rank)."""

    step: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    cursor: Cursor = field(default_factory=Cursor)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent buffers as full CPU tensors. A collective under FSDP2."""
    persistent = set(model.state_dict())
    named = [*model.named_parameters(), *((name, t) for name, t in model.named_buffers() if name in persistent)]
    return {name: full(tensor.detach()).cpu().contiguous() for name, tensor in named}


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: FitState, ranks: Ranks) -> None:
    """Write one checkpoint (rank 0) while the other ranks help to gather it."""
    weights = model_tensors(model)
    names = {id(param): name for name, param in model.named_parameters()}
    moments: dict[str, Tensor] = {}
    for param, values in optimizer.state.items():
        for key, value in values.items():
            moments[f"{names[id(param)]}/{key}"] = full(value.detach()).cpu().contiguous()
    if ranks.is_first:
        with atomic_dir(folder / f"step-{state.step:08d}") as tmp:
            save_file(weights, tmp / "model.safetensors")
            save_file(moments, tmp / "optimizer.safetensors")
            (tmp / "state.json").write_text(json.dumps(asdict(state)))
    barrier(ranks)


def keep_newest(folder: Path, count: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    on_message: Callable[[str], None],
) -> FitState:
    """Restore the newest sound checkpoint into model and optimizer; a fresh state when there is none.

    A damaged checkpoint is named and skipped for the one before. Raises StoreError when all there are is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        sweep(folder, path.name)
        wrong = verify_dir(path)
        if wrong is None:
            logger.info("resumed from %s", path)
            return _restore(path, model, optimizer)
        logger.info("%s is skipped: %s", path, wrong)
        on_message(f"checkpoint {path.name} is skipped: {wrong}; falling back to the one before")
    if found:
        raise StoreError(
            f"every checkpoint in {folder} is damaged ({', '.join(path.name for path in found)}). "
            f"Delete {folder} to train again from the start; the labels are kept."
        )
    return FitState()


@torch.no_grad()
def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> FitState:
    weights = load_file(path / "model.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    targets = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in weights}
    if set(targets) - set(weights):
        missing = ", ".join(sorted(set(targets) - set(weights))[:3])
        raise StoreError(
            f"{path} is of another model: it lacks {missing}. Delete the checkpoints folder to start over."
        )
    for name, tensor in targets.items():
        assign(tensor, weights[name])
    for name, param in model.named_parameters():
        state = optimizer.state[param]
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = moments[f"{name}/{key}"]
            if key == "step":
                state[key] = value.to(param.device)
            else:
                state[key] = torch.zeros_like(param)
                assign(state[key], value)
    raw = json.loads((path / "state.json").read_text())
    return FitState(**{**raw, "cursor": Cursor(**raw["cursor"])})
