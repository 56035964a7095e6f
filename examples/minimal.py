"""Token-level distillation on one page: what Limbeck does, flat, without Limbeck. Runs in seconds on one core.

A small character model learns some source code and becomes the teacher. What it thinks at every position is kept as its
top K tokens and the mass of all others. A smaller student learns from that, its twin from the text alone; how far both
are from the teacher is measured on held-out text. The production road of each part is named beside it.

    python examples/minimal.py

Shapes: B rows, T tokens, N supervised positions, K support, V vocabulary.
"""

import textwrap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, TOKENS, K = 128, 48, 8
STEPS, BATCH, LR = 120, 16, 5e-3
CE_WEIGHT, TEMPERATURE = 0.1, 1.0


class Dist(NamedTuple):
    """A teacher's distributions at N positions: exp(logp).sum(-1) + exp(tail) == 1. Production: limbeck/types.py."""

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor


def build(layers: int, width: int) -> LlamaForCausalLM:
    """A random Llama. Production: limbeck/students/ prunes the teacher or sizes a new model by a budget."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def read() -> tuple[Tensor, Tensor]:
    """Source code as characters: ids_BT to train and held out. Production: limbeck/data/ splits by content hash."""
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids = torch.tensor([min(ord(char), VOCAB - 1) for char in text])
    ids_BT = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
    order_B = torch.randperm(len(ids_BT))
    return ids_BT[order_B[:-40]], ids_BT[order_B[-40:]]


def logits_of(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Logits that predict every token but the first: logits_NV, N = B * (T - 1). Production never holds N x V:
    limbeck/losses/chunked.py goes from hidden rows to loss and gradient a few rows at a time."""
    return model(ids_BT).logits[:, :-1].reshape(-1, VOCAB).float()


def labels_of(ids_BT: Tensor) -> Tensor:
    """The tokens that really follow: labels_N."""
    return ids_BT[:, 1:].reshape(-1)


@torch.no_grad()
def label(teacher: nn.Module, ids_BT: Tensor) -> Dist:
    """The K most probable tokens and the log mass of the rest. Production: limbeck/losses/support.py chooses what to
    keep, limbeck/store/ packs it into bits on disk."""
    logp_NV = (logits_of(teacher, ids_BT) / TEMPERATURE).log_softmax(-1)
    logp_NK, ids_NK = logp_NV.topk(K)
    rest_NV = logp_NV.scatter(1, ids_NK, float("-inf"))
    return Dist(ids_NK, logp_NK, rest_NV.logsumexp(-1))


def forward_kl(logits_NV: Tensor, target: Dist) -> Tensor:
    """KL(teacher || student) on K + 1 cells, one for each kept token and one for all others: loss_N in nats.

    It bounds the KL over the whole vocabulary from below. Production: limbeck/losses/divergences.py."""
    logq_NV = (logits_NV / TEMPERATURE).log_softmax(-1)
    logq_NK = logq_NV.gather(1, target.ids_NK)
    tail_q_N = torch.log1p(-logq_NK.exp().sum(-1).clamp_max(1 - 1e-6))
    head_N = (target.logp_NK.exp() * (target.logp_NK - logq_NK)).sum(-1)
    return head_N + target.tail_N.exp() * (target.tail_N - tail_q_N)


def train(name: str, model: nn.Module, ids_BT: Tensor, stored: Dist | None) -> None:
    """One loop for stored targets (the teacher is not needed any more) and plain text. Production: limbeck/train/."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, LR / 10)
    draw = torch.Generator().manual_seed(0)  # student and twin see the same rows
    for step in range(STEPS):
        picked_B = torch.randint(len(ids_BT), (BATCH,), generator=draw)
        logits_NV = logits_of(model, ids_BT[picked_B])
        loss = nn.functional.cross_entropy(logits_NV, labels_of(ids_BT[picked_B]))
        if stored is not None:
            views = (part.view(len(ids_BT), TOKENS - 1, *part.shape[1:])[picked_B].flatten(0, 1) for part in stored)
            kl = forward_kl(logits_NV, Dist(*views)).mean()
            loss = (1 - CE_WEIGHT) * TEMPERATURE**2 * kl + CE_WEIGHT * loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 40 == 0:
            print(f"{name:8}step {step + 1:4d}  loss {loss.item():.3f}")


@torch.no_grad()
def fidelity(model: nn.Module, teacher: nn.Module, ids_BT: Tensor) -> tuple[float, float]:
    """KL over the whole vocabulary (nats) and how often both prefer the same token. Production: limbeck/evaluate/."""
    logp_NV = logits_of(teacher, ids_BT).log_softmax(-1)
    logq_NV = logits_of(model, ids_BT).log_softmax(-1)
    kl = nn.functional.kl_div(logq_NV, logp_NV, log_target=True, reduction="batchmean")
    agree = (logp_NV.argmax(-1) == logq_NV.argmax(-1)).float().mean()
    return kl.item(), agree.item()


def main() -> dict[str, float]:
    """KL to the teacher on held-out text: of the student before and after, and of its twin."""
    torch.manual_seed(0)
    text_BT, heldout_BT = read()
    teacher = build(layers=3, width=64)
    train("teacher", teacher, text_BT, None)
    student = build(layers=1, width=32)
    twin = build(layers=1, width=32)
    twin.load_state_dict(student.state_dict())
    scores = {"before": fidelity(student, teacher, heldout_BT)}
    train("student", student, text_BT, label(teacher, text_BT))
    train("twin", twin, text_BT, None)
    scores |= {"student": fidelity(student, teacher, heldout_BT), "twin": fidelity(twin, teacher, heldout_BT)}
    for name, (kl, agree) in scores.items():
        print(f"held out, {name:8}KL to the teacher {kl:.3f} nats, agreement {agree:.0%}")
    assert scores["student"][0] < scores["before"][0], "distillation did not bring the student closer to its teacher"
    return {name: kl for name, (kl, _) in scores.items()}


if __name__ == "__main__":
    main()
