"""The recipe: one frozen typed tree that names everything a run does. A choice among methods is a union by `kind`.

Every field is described once, here and, for what is minimised, in `objectives`; `docs/recipe.md` is generated from
these descriptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from limbeck.config.load import load_tree, override_tree
from limbeck.config.schema import Fraction, Positive, Section, UsualKind
from limbeck.recipe.curate import CurateRule
from limbeck.recipe.data import Source
from limbeck.recipe.evaluate import Harness, Tasks
from limbeck.recipe.export import Export
from limbeck.recipe.objective import Objective
from limbeck.recipe.teacher import HfTeacher, Teacher
from limbeck.recipe.verifier import Verifier
from limbeck.system.rundir import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# ---- data ------------------------------------------------------------------------------------------------------------


class Data(Section):
    """The transfer set: what is read, how long a row may be, and how much of it is held out."""

    source: Source = Field(discriminator="kind")
    max_length: Annotated[int, Field(ge=2)] = Field(default=512, description="longest row in tokens")
    long_rows: Literal["stop", "skip", "truncate"] = Field(
        default="truncate", description="what to do with longer rows"
    )
    bad_rows: Literal["stop", "skip"] = Field(default="stop", description="what to do with empty or malformed rows")
    chat_template: bool = Field(
        default=True, description="render prompt/completion pairs as a chat; false joins them as plain text"
    )
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="share of rows held out, by content hash"
    )
    limit: Positive | None = Field(default=None, description="use at most this many training rows (a seeded sample)")
    limit_heldout: Positive | None = Field(default=256, description="use at most this many held-out rows")


# ---- trace: what is kept of what the teacher says --------------------------------------------------------------------


class ScoreMode(Section):
    """The teacher reads the given text (teacher forcing)."""

    kind: Literal["score"] = "score"

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the teacher says."""
        return self.model_dump(mode="json")


class Enough(Section):
    """When a prompt is asked no further (rejection sampling, as in DeepSeek-R1's data, arXiv 2501.12948)."""

    verifier: Annotated[Verifier, Field(discriminator="kind")] = Field(description="what makes a reply right")
    right: Positive = Field(default=1, description="right replies after which a prompt is asked no further")


class GenerateMode(Section):
    """The teacher writes replies to the prompts, and its distributions on them are kept."""

    kind: Literal["generate"] = "generate"
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=1.0, description="sampling temperature; 0 is greedy")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=1.0, description="nucleus sampling")
    n: Positive = Field(default=1, description="replies per prompt; with `enough` the most")
    enough: Enough | None = Field(
        default=None,
        description="ask a prompt one reply after the other until enough are right; null asks every prompt `n` times",
    )
    max_tokens: Positive = Field(default=128, description="longest reply in tokens")
    stop: tuple[str, ...] = Field(default=(), description="strings that end a reply")
    think: Literal["keep", "strip"] = Field(
        default="keep",
        description="whether reasoning in <think> tags is learnt: `strip` learns only what follows it (text targets), "
        "while the store keeps all. To require reasoning, put the rule `think` into `curate`",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the teacher says; what is learnt of it does not."""
        return self.model_dump(mode="json", exclude={"think", *(() if self.enough else ("enough",))})


class TopK(Section):
    """The k most probable tokens. Biased; least with the tail as one more cell, which is the default."""

    kind: Literal["top_k"] = "top_k"
    k: Annotated[int, Field(ge=1, le=1024)] = Field(default=32, description="tokens kept per position")
    rest: Literal["tail", "gold", "spread", "renormalise"] = Field(
        default="tail",
        description="what becomes of the mass of all other tokens: `tail` keeps it as one cell; `gold` gives it to the "
        "token that really follows, `spread` to all others evenly, `renormalise` to the k (all three biased more)",
    )


class Sampled(Section):
    """Draws from the teacher, evenly spaced over its cumulative distribution: unbiased, and the smallest. `value` has
    both readings of Gemma 3's 256 draws (arXiv 2503.19786)."""

    kind: Literal["sampled"] = "sampled"
    draws: Annotated[int, Field(ge=1, le=4096)] = Field(default=36, description="draws per position")
    value: Literal["counts", "probability"] = Field(
        default="counts",
        description="weight of a drawn token: its count (unbiased), or the teacher's, renormalised (biased)",
    )


class Hybrid(Section):
    """Exact head and sampled tail with importance weights: unbiased, the head without any noise."""

    kind: Literal["hybrid"] = "hybrid"
    head: Annotated[int, Field(ge=1, le=128)] = Field(default=8, description="most tokens kept exactly")
    min_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.02, description="tokens below this are left to the tail: certain positions store few tokens"
    )
    draws: Annotated[int, Field(ge=1, le=127)] = Field(
        default=32,
        description="draws for a tail of mass 1; a position's tail gets draws in proportion to its mass, at least 1",
    )


class Live(Section):
    """Nothing is stored: the teacher runs beside the student and its full distribution is used."""

    kind: Literal["full"] = "full"


class TextTarget(Section):
    """Nothing but text is kept: the student learns the teacher's words (hard labels, objective.ce_weight 1)."""

    kind: Literal["text"] = "text"


class Votes(Section):
    """Soft labels without any log-prob: at each position, the share of a prompt's `trace.mode.n` replies that go on
    with each token. Equal replies are stored once, weighed by their share."""

    kind: Literal["votes"] = "votes"


Target = TopK | Sampled | Hybrid | Live | TextTarget | Votes


class TraceSection(Section):
    """What the teacher does with each row, and what is kept of it."""

    mode: ScoreMode | GenerateMode = Field(default_factory=ScoreMode, discriminator="kind")
    target: Target = Field(default_factory=Sampled, discriminator="kind")
    batch_tokens: Positive = Field(default=4096, description="tokens of one teacher forward")
    shard_tokens: Positive = Field(default=65536, description="tokens of one shard: what a kill can cost")


# ---- student ---------------------------------------------------------------------------------------------------------


class PretrainedStudent(Section):
    """Start from a model that exists."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(description="hub id or folder")
    trust_remote_code: bool = Field(default=False, description="run code that the model's authors ship")


class PruneStudent(Section):
    """The teacher with fewer layers: those of least block influence are removed (ShortGPT, arXiv 2403.03853)."""

    kind: Literal["prune"] = "prune"
    layers: Positive | None = Field(
        default=None, description="number of layers to keep, chosen by measured block influence"
    )
    keep: tuple[int, ...] | None = Field(default=None, description="explicit layers to keep, instead of `layers`")
    probe_rows: Positive = Field(default=16, description="training rows on which block influence is measured")


class ScratchStudent(Section):
    """A new model of the teacher's architecture and tokenizer (or those of `like`), sized by a parameter budget or
    explicit sizes."""

    kind: Literal["scratch"] = "scratch"
    like: str | None = Field(
        default=None,
        description="hub id or folder of its architecture and tokenizer, where the teacher is not in this process",
    )
    parameters: str | None = Field(default=None, description="budget such as `17M`: width and depth are chosen")
    hidden_size: Positive | None = Field(default=None, description="explicit width (with `layers` and `heads`)")
    layers: Positive | None = Field(default=None, description="explicit depth")
    heads: Positive | None = Field(default=None, description="explicit number of attention heads")
    teacher_embeddings: bool = Field(
        default=False,
        description="start from the teacher's embeddings, projected to the student's width where it differs",
    )


# ---- train -----------------------------------------------------------------------------------------------------------


class Steps(Section):
    kind: Literal["steps"] = "steps"
    steps: Positive = Field(description="optimizer steps")


class Tokens(Section):
    kind: Literal["tokens"] = "tokens"
    tokens: Positive = Field(description="tokens seen (all tokens of packed rows), rounded up to whole steps")


class Epochs(Section):
    kind: Literal["epochs"] = "epochs"
    epochs: Annotated[float, Field(gt=0.0)] = Field(description="passes over the transfer set")


class Minutes(Section):
    kind: Literal["minutes"] = "minutes"
    minutes: Annotated[float, Field(gt=0.0)] = Field(description="wall-clock minutes of training; not reproducible")


class Constant(Section):
    kind: Literal["constant"] = "constant"
    warmup: Fraction = Field(default=0.0, description="share of the budget over which the rate rises from 0")


class Cosine(Section):
    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = Field(default=0.03, description="share of the budget over which the rate rises from 0")
    floor: Fraction = Field(default=0.1, description="share of the rate at the end")


class WSD(Section):
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395)."""

    kind: Literal["wsd"] = "wsd"
    warmup: Fraction = Field(default=0.03, description="share of the budget over which the rate rises from 0")
    decay: Fraction = Field(default=0.2, description="share of the budget over which the rate falls")
    floor: Fraction = Field(default=0.0, description="share of the rate at the end")


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
        description="the export that is trained for (q4_0: four bits in the layers, eight in embedding and head)"
    )
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="share of the budget after which it begins"
    )


class Train(Section):
    """One loop for stored and live teachers."""

    budget: Steps | Tokens | Epochs | Minutes = Field(discriminator="kind")
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Constant | Cosine | WSD = Field(default_factory=Cosine, discriminator="kind")
    batch_tokens: Positive = Field(default=2048, description="most tokens of one packed micro-batch")
    accumulate: Positive = Field(default=1, description="micro-batches per step, over all ranks together")
    clip: Annotated[float, Field(gt=0.0)] | None = Field(
        default=1.0, description="largest gradient norm; null never clips"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the forward and backward pass; weights and moments stay float32"
    )
    qad: Qad | None = Field(default=None, description="train under the quantization of an export; null does not")
    activation_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    compile: bool = Field(default=False, description="torch.compile the student's body")
    parallel: Literal["none", "ddp", "fsdp2"] = Field(
        default="none", description="under torchrun: how ranks share the work"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = Field(default=5.0, description="minutes between checkpoints")
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(default=2, description="newest checkpoints kept")
    tensorboard: bool = Field(default=False, description="also write TensorBoard events (extra `tensorboard`)")
    twin: bool = Field(
        default=False, description="also train the hard-label twin: same student, rows and steps, CE only"
    )


# ---- evaluate --------------------------------------------------------------------------------------------------------


class Evaluate(Section):
    """Fidelity on held-out rows against the live teacher, calibration, speed, and side-by-side answers."""

    batch_tokens: Positive = Field(default=2048, description="tokens of one forward")
    bootstrap: Positive = Field(default=2000, description="resamples of the paired bootstrap over held-out rows")
    answers: Annotated[int, Field(ge=0)] = Field(
        default=4, description="held-out prompts answered side by side in the report"
    )
    answer_tokens: Positive = Field(default=48, description="tokens of each answer")
    tasks: Tasks | None = Field(default=None, description="problems that all models answer; null asks none")
    harness: Harness | None = Field(default=None, description="tasks of lm-evaluation-harness; null runs none")


class Recipe(Section):
    """Everything a run does. `limbeck check RECIPE` proves it before any work is done."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="name of the run's folder and model"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of everything that is random")
    scope: str = Field(default="", description="what the student is for, in a sentence; goes into its card")
    teacher: Annotated[Teacher, UsualKind("hf")] = Field(discriminator="kind")
    data: Data
    trace: TraceSection = Field(default_factory=TraceSection)
    curate: tuple[Annotated[CurateRule, Field(discriminator="kind")], ...] = Field(
        default=(), description="rules, in order: which of the teacher's replies the student learns from"
    )
    student: PretrainedStudent | PruneStudent | ScratchStudent = Field(discriminator="kind")
    objective: Objective = Field(default_factory=Objective)
    train: Train
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: tuple[Annotated[Export, Field(discriminator="kind")], ...] = Field(
        default=(), description="formats that the student is also written in; each is reopened, and judged against it"
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _usual_teacher(cls, value: object) -> object:
        return {"kind": "hf", **value} if isinstance(value, dict) else value

    @property
    def reader(self) -> tuple[str, bool]:
        """The model whose tokenizer makes rows tokens: the teacher, or else the student's (a path, and whether code
        that comes with it may run)."""
        if isinstance(self.teacher, HfTeacher):
            return self.teacher.path, self.teacher.trust_remote_code
        if isinstance(self.student, PretrainedStudent):
            return self.student.path, self.student.trust_remote_code
        return (self.student.like or "") if isinstance(self.student, ScratchStudent) else "", False

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a YAML file, with `a.b.c=value` overrides. Raises RecipeError: file and line, what was found,
        what is allowed. Whether its parts fit together is another question: `limbeck.check`."""
        return load_tree(cls, path, overrides)

    def override(self, *overrides: str) -> Recipe:
        """A copy with `a.b.c=value` overrides. Raises RecipeError."""
        return override_tree(self, overrides)

    def fingerprint(self, *sections: str) -> str:
        """16 hex digits over the given sections ("data", "trace.target" ...); over everything when none is given."""
        if not sections:
            return fingerprint(self.model_dump(mode="json"))
        dumped = []
        for section in sorted(sections):
            value = self.model_dump(mode="json")
            for key in section.split("."):
                value = value[key]
            dumped.append([section, value])
        return fingerprint(dumped)
