"""The sections of a recipe: data, noise, network, trainings, the chain of stages, evaluation."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from progdist._utils.precision import Precision
from progdist.data.images import ImageTransform, Resample
from progdist.diffusion.schedule import Cosine, Discrete, RectifiedFlow, Schedule
from progdist.distillation.chain import Stage, halvings, stages
from progdist.training.config import TrainConfig

Weight = Literal["constant", "snr", "truncated_snr", "snr_plus_one", "velocity"]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Optimized = TypeVar("Optimized", "Optimization", "Distillation")


class Part(BaseModel):
    """A section of a recipe: no unknown keys, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Part):
    """Where the images come from and how they are framed; `classes`, if given, is checked against the data."""

    source: str
    classes: PositiveInt | None = None
    size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    resample: Resample = "area"
    flip: bool = False
    workers: Annotated[int, Field(ge=0)] = 0

    def transform(self) -> ImageTransform:
        """How an image becomes a tensor."""
        return ImageTransform(self.size, self.channels, self.resample)


class Noise(Part):
    """The schedule: cosine with its log-SNR bounds, linear betas, or a rectified flow."""

    kind: Literal["cosine", "linear", "scaled_linear", "rectified_flow"] = "cosine"
    log_snr_max: Annotated[float, Field(allow_inf_nan=True)] = 20.0
    log_snr_min: Annotated[float, Field(allow_inf_nan=True)] = -20.0
    timesteps: PositiveInt = 1024

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.log_snr_max > self.log_snr_min:
            raise ValueError(f"log_snr_max {self.log_snr_max} is not above log_snr_min {self.log_snr_min}")
        if self.kind != "cosine" and (self.log_snr_max, self.log_snr_min) != (20.0, -20.0):
            raise ValueError(f"log_snr_max and log_snr_min are of the cosine schedule, not of {self.kind}")
        return self

    def build(self) -> Schedule:
        """The schedule itself."""
        match self.kind:
            case "cosine":
                return Cosine(self.log_snr_max, self.log_snr_min)
            case "linear":
                return Discrete.linear(timesteps=self.timesteps)
            case "scaled_linear":
                return Discrete.scaled_linear(timesteps=self.timesteps)
            case "rectified_flow":
                return RectifiedFlow()


class Network(Part):
    """The U-Net (see `progdist.models.unet.unet`)."""

    width: PositiveInt
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    blocks: PositiveInt = 1
    attention: tuple[PositiveInt, ...] = ()
    head_size: PositiveInt | None = None
    embedding: PositiveInt | None = None
    groups: PositiveInt = 32
    dropout: Share = 0.0
    class_conditional: bool = False


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
    max_skipped_updates: Annotated[int, Field(ge=0)] = 10
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 1000

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _check_batch(self)


class Training(Optimization):
    """The teacher's training; or `model`, a folder (ours or diffusers') or hub name of a teacher to take instead.

    Of a given teacher `offset` replaces that of the timestep (see `progdist.diffusion.denoiser`), and `trust` takes it
    though its output contradicts its folder (see `progdist.distillation.teacher_check`).
    """

    model: str | None = None
    offset: float | None = None
    trust: bool = False


class Conversion(Optimization):
    """Stage 0 of a given teacher: a v student learns its predictions (see `progdist.distillation.conversion`).

    With `guidance` the teacher is guided by that scale, and `null_class` is its label for none (the last if not given).
    """

    updates: PositiveInt = 5_000
    warmup: Annotated[int, Field(ge=0)] = 100
    lr_scheduler: Literal["linear", "constant"] = "linear"
    ema: Share = 0.0
    lora_rank: Annotated[int, Field(ge=0)] = 0
    guidance: Annotated[float, Field(gt=0)] | None = None
    null_class: Annotated[int, Field(ge=0)] | None = None


HALVING = {"start": 256, "end": 1, "substeps": 2}
"""What a chain is made from where it is not given whole."""


class StageTraining(Part):
    """What one stage changes; what is not said is as in `distill`."""

    updates: PositiveInt | None = None
    learning_rate: Rate | None = None
    lr_scheduler: Literal["linear", "constant"] | None = None


class Stop(Part):
    """When a stage ends before its cap of updates (see `progdist.training.early_stopping`).

    `held_out` images, which no student trains on, give the loss that is watched.
    """

    every: PositiveInt = 100
    window: PositiveInt = 5
    fraction: Share = 0.01
    held_out: PositiveInt = 256


class Distillation(Part):
    """The chain of stages and how each is trained.

    The chain goes from `start` (256) to `end` (1) by dividing by `substeps` (2), or is given whole as a list; each
    count must divide the one before it, and their ratio is the number of teacher steps to one of the student. `stages`
    overrides, by the student's step count. With `lora_rank` students learn corrections of that rank alone (see
    `progdist.training.lora`). With `stop`, `updates` is the most that a stage takes.
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
    weighting: Weight = "truncated_snr"
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    max_skipped_updates: Annotated[int, Field(ge=0)] = 10
    lora_rank: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 1000
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

    def plan(self, stage: Stage) -> TrainConfig:
        """How one stage is trained: as all, but for what `stages` says of it."""
        own = self.stages.get(stage.steps, StageTraining()).model_dump(exclude_none=True)
        return train_config(self.model_copy(update=own))


class Evaluation(Part):
    """How the models of the run are measured.

    Those of more than `most_steps` steps are not; the reference is the teacher at the largest count that is. The
    teacher is measured again at every `teacher_every`-th count of the chain.
    """

    samples: Annotated[int, Field(ge=2)] = 2048
    features: tuple[Literal["digits", "fashion-mnist", "pixels", "inception"], ...] = ("pixels",)
    resamples: Annotated[int, Field(ge=2)] = 100
    batch: PositiveInt = 256
    precision: Precision = "auto"
    clip: bool = False
    most_steps: PositiveInt | None = None
    teacher_every: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.features:
            raise ValueError("features is empty: name at least one, e.g. pixels")
        return self


def train_config(part: Optimization | Distillation) -> TrainConfig:
    """The training configuration in a section; only the teacher's has weight decay, an average and dropout."""
    numbers = {name: value for name, value in part.model_dump().items() if name in TrainConfig.__dataclass_fields__}
    return TrainConfig(**numbers, dropout=isinstance(part, Training))
