"""Other libraries on the same tensors and tokens, as they are meant to be called: losses, and TRL's training step.

Each loss is a mean in nats per position. ImportError where a library is not installed (`make peers` installs them).
"""

# pyright: reportMissingImports=false
# (they are installed in .venv-peers only)

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class Problem(NamedTuple):
    """Student's and teacher's last hidden rows and heads, and the tokens that follow."""

    hidden_ND: Tensor
    weight_VD: Tensor
    teacher_ND: Tensor
    teacher_VD: Tensor
    labels_N: Tensor


def _logits(problem: Problem) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        u_NV = problem.teacher_ND @ problem.teacher_VD.T
    return problem.hidden_ND @ problem.weight_VD.T, u_NV


def plain_ce(problem: Problem) -> Tensor:
    return F.cross_entropy((problem.hidden_ND @ problem.weight_VD.T).float(), problem.labels_N)


def plain_kl(problem: Problem) -> Tensor:
    z_NV, u_NV = _logits(problem)
    logq_NV, logp_NV = (torch.log_softmax(x_NV.float(), -1) for x_NV in (z_NV, u_NV))
    return F.kl_div(logq_NV, logp_NV, log_target=True, reduction="batchmean")


def trl_gkd(problem: Problem, beta: float) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    z_NV, u_NV = _logits(problem)
    return GKDTrainer.generalized_jsd_loss(z_NV[None], u_NV[None], labels=problem.labels_N[None], beta=beta)


def trl_chunked(problem: Problem, beta: float) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones_like(problem.labels_N)[None]
    heads = (problem.weight_VD, problem.teacher_VD)
    return _chunked_divergence_loss(problem.hidden_ND[None], problem.teacher_ND[None], *heads, mask, beta)[0]


def liger_jsd(problem: Problem, beta: float, compiled: bool) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled)
    return loss(problem.hidden_ND, problem.weight_VD, problem.teacher_ND, problem.teacher_VD, problem.labels_N)


def torchtune_kl(problem: Problem, num_chunks: int = 8) -> Tensor:
    """Only its loss file: the package itself wants torchao."""
    package = importlib.util.find_spec("torchtune")
    if package is None or not package.submodule_search_locations:
        raise ImportError("torchtune is not installed")
    path = Path(package.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    z_chunks = [h_nD @ problem.weight_VD.T for h_nD in problem.hidden_ND[None].chunk(num_chunks, 1)]
    with torch.no_grad():
        u_chunks = [h_nD @ problem.teacher_VD.T for h_nD in problem.teacher_ND[None].chunk(num_chunks, 1)]
    return module.ForwardKLWithChunkedOutputLoss(num_chunks)(z_chunks, u_chunks, problem.labels_N[None])


STORED: dict[str, Callable[[Problem], Tensor]] = {"plain CE, full logits": plain_ce}
LIVE: dict[str, Callable[[Problem], Tensor]] = {
    "plain F.kl_div, full logits": plain_kl,
    "torchtune forward KL, 8 chunks": torchtune_kl,
    "Liger JSD beta 0": lambda problem: liger_jsd(problem, 0.0, False),
    "Liger JSD beta 0, compiled": lambda problem: liger_jsd(problem, 0.0, True),
    "Liger JSD beta 0.5": lambda problem: liger_jsd(problem, 0.5, False),
    "Liger JSD beta 0.5, compiled": lambda problem: liger_jsd(problem, 0.5, True),
    "TRL GKD beta 0": lambda problem: trl_gkd(problem, 0.0),
    "TRL GKD beta 0.5": lambda problem: trl_gkd(problem, 0.5),
    "TRL chunked beta 0": lambda problem: trl_chunked(problem, 0.0),
    "TRL chunked beta 0.5": lambda problem: trl_chunked(problem, 0.5),
}


def trl_step(student, teacher, tokenizer, ids_BT: Tensor, **config) -> Callable[[], float]:
    """GKDTrainer on one batch, over and over: seconds from the end of one training step to the end of the next.

    No generation (`lmbda` 0). `config` goes to GKDConfig; everything else is as it comes.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    batch = {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "labels": ids_BT.masked_fill(torch.arange(ids_BT.shape[1]) == 0, -100),
        "prompts": ids_BT[:, :1],
        "prompt_attention_mask": torch.ones_like(ids_BT[:, :1]),
    }
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = GKDTrainer(
                model=student,
                teacher_model=teacher,
                args=GKDConfig(
                    output_dir=folder,
                    use_cpu=True,
                    per_device_train_batch_size=len(ids_BT),
                    max_steps=6,
                    lmbda=0.0,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                    **config,
                ),
                data_collator=lambda _: {name: tensor.clone() for name, tensor in batch.items()},
                train_dataset=Dataset.from_dict({"row": list(range(8 * len(ids_BT)))}),
                processing_class=tokenizer,
                callbacks=[Clock()],
            )
            trainer.train()
        gaps = sorted(b - a for a, b in itertools.pairwise(ends))
        return gaps[len(gaps) // 2]

    return run


TUNED = {"beta": 0.0, "bf16": True, "gradient_checkpointing": False}
