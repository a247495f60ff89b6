"""The trainings of a recipe: the teacher's, stage 0, the chain of stages.

Each is a `TrainConfig` with its model or method. Missing options are those of `DEFAULTS`, which `with_defaults` fills
in.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, PositiveInt, create_model
from pydantic.dataclasses import dataclass

from progdist._utils.lora_files import lora_file
from progdist.diffusion.loss import WEIGHTINGS
from progdist.methods import METHODS
from progdist.methods.chain import Stage, halvings, stages
from progdist.methods.guidance import requested_guidance
from progdist.recipes.schema import Part, one_of
from progdist.recipes.stated import HALVING
from progdist.training.config import CONVERSION_UPDATES, DEFAULTS, OF_A_WHOLE_TRAINING, OPTIONS, TrainConfig
from progdist.training.early_stopping import EarlyStopping

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # no unknown keys, no inf or nan


@dataclass(frozen=True, config=STRICT)
class Training(TrainConfig):
    """The teacher's training; or `model`, a folder (ours or diffusers') or hub name of an existing teacher.

    `weighting` is the weighting of the loss. For an existing teacher `offset` replaces the timestep offset (see
    `progdist.diffusion.denoiser`), and `trust` accepts it even if its output contradicts its folder (see
    `progdist.teachers.check`). `call` are arguments of a watched pipeline, e.g. its height, width or number of frames
    (see `progdist.teachers.pipeline`). `loras` are LoRA files, FILE[:weight], fused into a stock pipeline before it is
    opened, and `config` is the folder with the configs of a single-file checkpoint (see `progdist.teachers.prepared`).
    """

    weighting: Annotated[str, one_of(WEIGHTINGS)] = "truncated_snr"
    model: str | None = None
    offset: float | None = None
    trust: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    loras: tuple[str, ...] = ()
    config: str | None = None

    def __post_init__(self) -> None:
        """Raises: UserError: as TrainConfig, and as `progdist._utils.lora_files.lora_file`."""
        super().__post_init__()
        for each in self.loras:
            lora_file(each)


@dataclass(frozen=True, config=STRICT)
class Conversion(TrainConfig):
    """Stage 0 of an existing teacher: a v student learns its predictions (see `progdist.methods.conversion`).

    It has its own budget and schedule: four times the updates of a stage, a warmup, and a rate that falls to 0.

    With `guidance` the teacher is guided: by one scale, or by any of a range, which its student takes as an input. The
    unconditional branch is `null_class` (by default the class that is clearly the null class, which is printed), or
    the prompt `negative` (by default the empty one).

    With `zero_terminal_snr` the student's schedule ends in pure noise; with false it ends where the teacher's does. By
    default it ends in pure noise if the teacher predicts eps and is not guided.
    """

    weighting: Annotated[str, one_of(WEIGHTINGS)] = "truncated_snr"
    guidance: Annotated[
        Any, BeforeValidator(requested_guidance), PlainSerializer(lambda value: value.to_json() if value else None)
    ] = None
    null_class: Annotated[int, Field(ge=0)] | None = None
    negative: str | None = None
    zero_terminal_snr: bool | None = None

    def __post_init__(self) -> None:
        """Raises: UserError: as TrainConfig. ValueError: `null_class` or `negative` without `guidance`."""
        super().__post_init__()
        for name in ("negative", "null_class"):
            if getattr(self, name) is not None and self.guidance is None:
                raise ValueError(f"{name} requires conversion.guidance")


@dataclass(frozen=True, config=STRICT)
class Stop(EarlyStopping):
    """When a stage ends before its cap of updates (see `progdist.training.early_stopping`).

    The watched loss is that of `held_out` images, which no student trains on; each of several crops is an image.
    """


if TYPE_CHECKING:

    class StageTraining(Part):
        """Overrides of one stage."""
else:
    StageTraining = create_model(
        "StageTraining",
        __base__=Part,
        __doc__="Overrides of one stage; other options are those of `distill`.",
        **{
            name: (hint | None, None)
            for name, hint in get_type_hints(TrainConfig).items()
            if name in OPTIONS and name not in OF_A_WHOLE_TRAINING
        },
        options=(dict[str, Any] | None, None),
    )


@dataclass(frozen=True, config=STRICT)
class Distillation(TrainConfig):
    """The chain of stages and their training.

    The chain goes from `start` (256) to `end` (1) by dividing by `substeps` (2), or is a list, `chain`; each
    count must divide the one before it, and their ratio is the number of teacher steps per student step. `stages` has
    overrides by the student's step count. `method` is one of `progdist.methods.METHODS`, and `options` are the method's
    own. With a chain of one stage, the student can start from a finished one, the folder `initial`, in place of its
    teacher.
    With `ema` a student is the average of its weights in training, which with `tract` is also its self-teacher; with 0,
    the default, the current student is. With `lora_rank` students learn only corrections of that rank (see
    `progdist.training.lora`). With `stop`, `updates` is the upper limit of a stage.
    """

    start: PositiveInt | None = None
    end: PositiveInt | None = None
    substeps: Annotated[int, Field(ge=2)] | None = None
    chain: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] | None = None
    method: Annotated[str, one_of(METHODS)] = "progressive"
    options: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    weighting: Annotated[str, one_of(WEIGHTINGS)] = "truncated_snr"
    stop: Stop | None = None
    stages: dict[int, StageTraining] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: UserError: as TrainConfig, of a stage, too. ValueError: the chain and `stages` do not fit."""
        super().__post_init__()
        if self.chain and (idle := [name for name in HALVING if getattr(self, name) is not None]):
            raise ValueError(f"{idle[0]} has no effect with chain: set only distill.chain")
        if unknown := set(self.stages) - {stage.steps for stage in self.links()}:
            students = ", ".join(str(stage.steps) for stage in self.links())
            raise ValueError(
                f"stages {sorted(unknown)} are not in the chain {self.counts()}, whose students take {students} steps"
            )
        for stage in self.links():
            self.train_config(stage)
            METHODS[self.method].configured(self.method_options(stage))
        if self.initial is not None and len(self.links()) > 1:
            raise ValueError(f"initial requires a chain of one stage, got {self.counts()} with {len(self.links())}")

    def counts(self) -> list[int]:
        """The step counts, teacher first."""
        if self.chain:
            return list(self.chain)
        start, end, substeps = (getattr(self, name) or default for name, default in HALVING.items())
        return halvings(start, end, substeps)

    def links(self) -> list[Stage]:
        """The stages in order."""
        return stages(self.counts())

    def train_config(self, stage: Stage) -> TrainConfig:
        """The training of one stage: the common options with the overrides in `stages`."""
        return self.overridden(**self._override(stage, {"options"}))

    def method_options(self, stage: Stage) -> dict[str, Any]:
        """The method's options in one stage: the common ones with the overrides in `stages`."""
        return {**self.options, **self._override(stage, set()).get("options", {})}

    def _override(self, stage: Stage, without: set[str]) -> dict[str, Any]:
        override = self.stages.get(stage.steps)
        return override.model_dump(exclude_none=True, exclude=without) if override else {}


def with_defaults(content: Any) -> Any:  # noqa: ANN401  (whatever a YAML file holds)
    """The content of a recipe with the defaults of its trainings filled in."""
    if not isinstance(content, Mapping):
        return content
    sections = {name: content.get(name, {}) for name in DEFAULTS}
    merged = {name: {**DEFAULTS[name], **section} for name, section in sections.items() if isinstance(section, Mapping)}
    if (method := METHODS.get(str(merged.get("distill", {}).get("method")))) is not None:
        merged["distill"] = {**DEFAULTS["distill"], **method.training, **sections["distill"]}
    if "conversion" in merged:
        try:
            updates = merged["distill"]["updates"]
            updates = max(1, updates if isinstance(updates, int) else int(str(updates).removesuffix(".0")))
        except (KeyError, ValueError):  # mistakes in it are reported separately
            updates = DEFAULTS["distill"]["updates"]
        merged["conversion"].setdefault("updates", CONVERSION_UPDATES * updates)
    return {**content, **merged}
