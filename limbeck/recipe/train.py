"""`train`: budget, optimizer, schedule, and how the loop runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from limbeck.config.problems import Problem, problem
from limbeck.config.schema import Fraction, Positive, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe


class StepsBudget(Section):
    kind: Literal["steps"] = "steps"
    steps: Positive = Field(description="optimizer steps")


class TokensBudget(Section):
    kind: Literal["tokens"] = "tokens"
    tokens: Positive = Field(description="tokens seen (all tokens of packed rows), rounded up to whole steps")


class EpochsBudget(Section):
    kind: Literal["epochs"] = "epochs"
    epochs: Annotated[float, Field(gt=0.0)] = Field(description="passes over the transfer set")


class MinutesBudget(Section):
    kind: Literal["minutes"] = "minutes"
    minutes: Annotated[float, Field(gt=0.0)] = Field(description="wall-clock minutes of training; not reproducible")


class Constant(Section):
    kind: Literal["constant"] = "constant"
    warmup: Fraction = Field(default=0.0, description="share of the budget over which the learning rate rises from 0")


class Cosine(Section):
    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = Field(default=0.03, description="share of the budget over which the learning rate rises from 0")
    floor: Fraction = Field(default=0.1, description="final learning rate as a share of the peak")


class WSD(Section):
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395)."""

    kind: Literal["wsd"] = "wsd"
    warmup: Fraction = Field(default=0.03, description="share of the budget over which the learning rate rises from 0")
    decay: Fraction = Field(default=0.2, description="share of the budget over which the learning rate falls")
    floor: Fraction = Field(default=0.0, description="final learning rate as a share of the peak")


class Optimizer(Section):
    """AdamW (arXiv 1711.05101); norms and biases are not decayed."""

    lr: Annotated[float, Field(gt=0.0)] = Field(default=3e-4, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay rates of the moments")
    eps: Annotated[float, Field(gt=0.0)] = Field(default=1e-8, description="added to the denominator")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(default=0.01, description="decoupled weight decay")


class Qad(Section):
    """Quantization-aware distillation (BitDistiller, arXiv 2402.10631): student and twin compute with their weights as
    the GGUF export of that kind stores them. What is saved, and exported, is what was trained."""

    quant: Literal["q4_0", "q8_0"] = Field(
        description="quantization to train for (q4_0: four bits in the layers, eight in embedding and head)"
    )
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="share of the budget after which quantization begins"
    )


class Train(Section):
    """One loop for stored and live teachers."""

    budget: StepsBudget | TokensBudget | EpochsBudget | MinutesBudget = Field(discriminator="kind")
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Constant | Cosine | WSD = Field(default_factory=Cosine, discriminator="kind")
    batch_tokens: Positive = Field(default=2048, description="maximum tokens of one packed micro-batch")
    accumulate: Positive = Field(default=1, description="gradient accumulation: micro-batches per step, over all ranks")
    clip: Annotated[float, Field(gt=0.0)] | None = Field(
        default=1.0, description="maximum gradient norm; null does not clip"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="dtype of the forward and backward pass; weights and moments stay float32"
    )
    qad: Qad | None = Field(default=None, description="train under the quantization of an export; null does not")
    activation_checkpointing: bool = Field(default=False, description="gradient checkpointing: less memory, more time")
    compile: bool = Field(default=False, description="torch.compile the student's body")
    parallel: Literal["none", "ddp", "fsdp2"] = Field(
        default="none", description="data parallelism under torchrun: replicated (ddp) or sharded (fsdp2)"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = Field(default=5.0, description="interval between checkpoints")
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(default=2, description="number of newest checkpoints to keep")
    tensorboard: bool = Field(default=False, description="also write TensorBoard events (extra `tensorboard`)")
    trackers: tuple[Literal["trackio", "wandb"], ...] = Field(
        default=(), description="also send metrics there (extras `trackio`, `wandb`); one that fails ends no run"
    )
    twin: bool = Field(
        default=False, description="also train the hard-label twin: same student, rows and steps, CE only"
    )

    @property
    def all_trackers(self) -> tuple[str, ...]:
        return (*(("tensorboard",) if self.tensorboard else ()), *dict.fromkeys(self.trackers))

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fingerprints from before there were `trackers` hold."""
        found = handler(self)
        if not self.trackers:
            found.pop("trackers", None)
        return found


# ---- what it may not say ---------------------------------------------------------------------------------------------


def train_rules(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if not all(0 <= beta < 1 for beta in train.optimizer.betas):
        found = list(train.optimizer.betas)
        yield problem("train.optimizer.betas", f"is {found}; both must be at least 0 and below 1, such as [0.9, 0.95].")
    schedule = train.schedule
    if isinstance(schedule, WSD) and schedule.warmup + schedule.decay > 1:
        yield problem(
            "train.schedule",
            f"warms up over {schedule.warmup:g} and decays over {schedule.decay:g} of the budget, together more than "
            "all of it; their sum may be at most 1.",
        )
    if (
        train.qad is not None
        and isinstance(train.budget, StepsBudget)
        and train.qad.start > 1 - 0.5 / train.budget.steps
    ):
        yield problem(
            "train.qad.start",
            f"is {train.qad.start:g}, after the last of {train.budget.steps} steps; lower it, or remove train.qad.",
        )
    if train.twin and recipe.objective.only_ce and recipe.objective.position_weights.teacher is None:
        yield problem(
            "train.twin",
            "has no effect when objective.ce_weight is 1: the student is the hard-label twin already. Lower ce_weight, "
            "or set train.twin=false.",
        )
