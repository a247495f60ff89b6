"""The trainings of a recipe: the teacher's, stage 0, the chain of stages."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from progdist._utils.names import Optimizer, Precision
from progdist.methods.chain import Stage, halvings, stages
from progdist.recipes.schema import Part, Rate, Scale, Share, Weight
from progdist.training.config import TrainConfig

Optimized = TypeVar("Optimized", "Optimization", "Distillation")


def _check_batch(part: Optimized) -> Optimized:
    """The section itself, if its batch divides into its gradient_accumulation_steps."""
    if part.batch % part.gradient_accumulation_steps:
        raise ValueError(
            f"batch {part.batch} does not divide into {part.gradient_accumulation_steps} gradient_accumulation_steps"
        )
    return part


class Optimization(Part):
    """How one network is trained on data (see `progdist.training.config.TrainConfig`)."""

    updates: PositiveInt = 100_000
    batch: PositiveInt = 128
    learning_rate: Rate = 2e-4
    warmup: Annotated[int, Field(ge=0)] = 1000
    lr_scheduler: Literal["linear", "constant"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    ema: Share = 0.9999
    weighting: Weight = "truncated_snr"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    max_skipped_updates: Annotated[int, Field(ge=0)] = 10
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 1000
    optimizer: Optimizer = "adamw"

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _check_batch(self)


class Training(Optimization):
    """The teacher's training; or `model`, a folder (ours or diffusers') or hub name of a teacher to take instead.

    Of a given teacher `offset` replaces that of the timestep (see `progdist.diffusion.denoiser`), and `trust` takes it
    though its output contradicts its folder (see `progdist.teachers.check`).
    """

    model: str | None = None
    offset: float | None = None
    trust: bool = False


class Conversion(Optimization):
    """Stage 0 of a given teacher: a v student learns its predictions (see `progdist.methods.conversion`).

    Its budget and schedule are its own: a warmup, and a rate that falls to 0. `progdist distill` gives it four times
    the updates of a stage, and the stages' batch and highest rate.

    With `guidance` the teacher is guided: by one scale for all, or by any from the least to the largest, which its
    student takes as an input. It is guided away from `null_class` (the last if not given), or from
    the prompt `negative` (the empty one if not given).

    With `zero_terminal_snr` the student's schedule ends in pure noise, with false where the teacher's ends. If it is
    not given, it ends in pure noise if the teacher predicts eps and is not guided.
    """

    updates: PositiveInt = 5_000
    warmup: Annotated[int, Field(ge=0)] = 100
    lr_scheduler: Literal["linear", "constant"] = "linear"
    ema: Share = 0.0
    lora_rank: Annotated[int, Field(ge=0)] = 0
    guidance: Scale | tuple[Scale, Scale] | None = None
    null_class: Annotated[int, Field(ge=0)] | None = None
    negative: str | None = None
    zero_terminal_snr: bool | None = None

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        if isinstance(self.guidance, tuple) and not self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance {list(self.guidance)} is no range: give the least scale, then the largest")
        for name in ("negative", "null_class"):
            if getattr(self, name) is not None and self.guidance is None:
                raise ValueError(
                    f"{name} is what guidance leads away from, and there is none: set conversion.guidance, too, or "
                    "leave it out"
                )
        return self


HALVING = {"start": 256, "end": 1, "substeps": 2}
"""What a chain is made from where it is not given whole."""


class StageTraining(Part):
    """What one stage changes; what is not said is as in `distill`."""

    updates: PositiveInt | None = None
    learning_rate: Rate | None = None
    lr_scheduler: Literal["linear", "constant"] | None = None
    max_grad_norm: Annotated[float, Field(ge=0)] | None = None
    gradient_accumulation_steps: PositiveInt | None = None
    gradient_checkpointing: bool | None = None
    compile: bool | None = None
    cuda_graphs: bool | None = None
    max_skipped_updates: Annotated[int, Field(ge=0)] | None = None
    precision: Precision | None = None
    checkpoint_every: PositiveInt | None = None
    optimizer: Optimizer | None = None


class Stop(Part):
    """When a stage ends before its cap of updates (see `progdist.training.early_stopping`).

    `held_out` images, which no student trains on, give the loss that is watched; of several crops each is an image.
    """

    every: PositiveInt = 100
    window: PositiveInt = 5
    fraction: Share = 0.01
    held_out: PositiveInt = 256


class Distillation(Part):
    """The chain of stages and how each is trained.

    The chain goes from `start` (256) to `end` (1) by dividing by `substeps` (2), or is given whole as a list; each
    count must divide the one before it, and their ratio is the number of teacher steps to one of the student. `stages`
    overrides, by the student's step count. `target` names what a student learns (see `progdist.methods.transitive`).
    With `ema` a student is the average of its weights in training, which with `tract` is its self-teacher, too; with 0,
    the default, the student as it is teaches itself there. With `lora_rank` students learn corrections of that rank
    alone (see `progdist.training.lora`). With `stop`, `updates` is the most that a stage takes.
    """

    start: PositiveInt | None = None
    end: PositiveInt | None = None
    substeps: Annotated[int, Field(ge=2)] | None = None
    chain: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] | None = None
    updates: PositiveInt = 50_000
    batch: PositiveInt = 128
    learning_rate: Rate = 5e-5
    lr_scheduler: Literal["linear", "constant"] = "linear"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    ema: Share = 0.0
    target: Literal["progressive", "stochastic", "tract"] = "progressive"
    weighting: Weight = "truncated_snr"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    max_skipped_updates: Annotated[int, Field(ge=0)] = 10
    lora_rank: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 1000
    optimizer: Optimizer = "adamw"
    stop: Stop | None = None
    stages: dict[int, StageTraining] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_what_was_written_beside_a_chain(cls, content: Any) -> Any:  # noqa: ANN401
        """Recipes that earlier versions wrote whole have `chain` and the defaults of what it replaces."""
        beside = isinstance(content, dict) and content.get("chain") is not None
        if beside and all(content.get(name) == usual for name, usual in HALVING.items()):
            return {name: value for name, value in content.items() if name not in HALVING}
        return content

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chain and (given := [name for name in HALVING if getattr(self, name) is not None]):
            raise ValueError(f"{given[0]} has no effect beside chain, which is given whole: set distill.chain")
        if unknown := set(self.stages) - {stage.steps for stage in self.links()}:
            raise ValueError(f"stages {sorted(unknown)} are not in the chain {self.counts()}")
        for stage in self.links():
            self.train_config(stage)
        return _check_batch(self)

    def counts(self) -> list[int]:
        """The step counts, teacher first."""
        if self.chain:
            return list(self.chain)
        start, end, substeps = (getattr(self, name) or usual for name, usual in HALVING.items())
        return halvings(start, end, substeps)

    def links(self) -> list[Stage]:
        """The stages in order."""
        return stages(self.counts())

    def train_config(self, stage: Stage) -> TrainConfig:
        """How one stage is trained: as all, but for what `stages` says of it."""
        own = self.stages.get(stage.steps, StageTraining()).model_dump(exclude_none=True)
        return train_config(_check_batch(self.model_copy(update=own)))


def train_config(part: Optimization | Distillation) -> TrainConfig:
    """The training configuration in a section; only the teacher's has weight decay and dropout."""
    numbers = {name: value for name, value in part.model_dump().items() if name in TrainConfig.__dataclass_fields__}
    return TrainConfig(**numbers, dropout=isinstance(part, Training))
