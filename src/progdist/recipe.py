"""What a run is: a validated YAML file.

Every key has a default but `data` and `network`; an unknown key is refused, with the nearest known one named. Values
can be overridden by dotted names, e.g. `distill.updates=500`. `progdist recipes` lists those that ship.
"""

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from progdist._errors import UserError
from progdist.data import Framing, Resample
from progdist.distill import Stage, halvings, stages
from progdist.schedule import Cosine, Discrete, RectifiedFlow, Schedule
from progdist.train import Plan

Weight = Literal["constant", "snr", "truncated_snr", "snr_plus_one", "velocity"]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["float32", "bf16"]


class Part(BaseModel):
    """A section of a recipe: no unknown keys, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Part):
    """Where the images come from and how they are framed."""

    source: str
    size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    resample: Resample = "area"
    flip: bool = False
    workers: Annotated[int, Field(ge=0)] = 0

    def framing(self) -> Framing:
        """How an image becomes a tensor."""
        return Framing(self.size, self.channels, self.resample)


class Noise(Part):
    """The schedule: cosine with its log-SNR bounds, linear betas, or a rectified flow."""

    kind: Literal["cosine", "linear", "scaled_linear", "rectified_flow"] = "cosine"
    log_snr_max: float = 20.0
    log_snr_min: float = -20.0
    timesteps: PositiveInt = 1024

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
    """The U-Net (see `progdist.network.unet`)."""

    width: PositiveInt
    multipliers: tuple[PositiveInt, ...]
    blocks: PositiveInt = 1
    attention: tuple[PositiveInt, ...] = ()
    head_size: PositiveInt | None = None
    embedding: PositiveInt | None = None
    groups: PositiveInt = 32
    dropout: Share = 0.0
    class_conditional: bool = False


class Training(Part):
    """The teacher's training (see `progdist.train.Plan`)."""

    updates: PositiveInt = 100_000
    batch: PositiveInt = 128
    learning_rate: Rate = 2e-4
    warmup: Annotated[int, Field(ge=0)] = 1000
    anneal: Literal["linear", "none"] = "none"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(ge=0)] = 1.0
    ema: Share = 0.9999
    weighting: Weight = "truncated_snr"
    microbatches: PositiveInt = 1
    precision: Precision = "float32"
    checkpoint_every: PositiveInt = 1000


class StageTraining(Part):
    """What one stage changes; what is not said is as in `distill`."""

    updates: PositiveInt | None = None
    learning_rate: Rate | None = None
    anneal: Literal["linear", "none"] | None = None


class Distillation(Part):
    """The chain of stages and how each is trained.

    The chain goes from `start` to `end` by dividing by `substeps`, or is given whole as a list; each count must divide
    the one before it, and their ratio is the number of teacher steps to one of the student. `stages` overrides, by
    the student's step count.
    """

    start: PositiveInt = 256
    end: PositiveInt = 1
    substeps: Annotated[int, Field(ge=2)] = 2
    chain: tuple[PositiveInt, ...] | None = None
    updates: PositiveInt = 50_000
    batch: PositiveInt = 128
    learning_rate: Rate = 5e-5
    anneal: Literal["linear", "none"] = "linear"
    clip: Annotated[float, Field(ge=0)] = 1.0
    weighting: Weight = "truncated_snr"
    microbatches: PositiveInt = 1
    precision: Precision = "float32"
    checkpoint_every: PositiveInt = 1000
    stages: dict[int, StageTraining] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := set(self.stages) - {stage.steps for stage in self.links()}:
            raise ValueError(f"stages {sorted(unknown)} are not in the chain {self.counts()}")
        return self

    def counts(self) -> list[int]:
        """The step counts, teacher first."""
        return list(self.chain) if self.chain else halvings(self.start, self.end, self.substeps)

    def links(self) -> list[Stage]:
        """The stages in order."""
        return stages(self.counts())

    def plan(self, stage: Stage) -> Plan:
        """How one stage is trained: as all, but for what `stages` says of it."""
        own = self.stages.get(stage.steps, StageTraining()).model_dump(exclude_none=True)
        return plan_of(self.model_copy(update=own))


class Evaluation(Part):
    """How every model of the run is measured."""

    samples: Annotated[int, Field(ge=2)] = 2048
    features: tuple[Literal["digits", "fashion-mnist", "pixels", "inception"], ...] = ("pixels",)
    resamples: Annotated[int, Field(ge=2)] = 100
    batch: PositiveInt = 256
    precision: Precision = "float32"
    clip: bool = False
    teacher_every: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.features:
            raise ValueError("features is empty: name at least one, e.g. pixels")
        return self


class Recipe(Part):
    """A run: data, schedule, network, the teacher's training, distillation, evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    noise: Noise = Noise()
    parameterization: Literal["x", "eps", "v", "velocity", "x_eps"] = "v"
    network: Network
    teacher: Training = Training()
    distill: Distillation = Distillation()
    evaluate: Evaluation = Evaluation()


def plan_of(part: Training | Distillation) -> Plan:
    """The training plan within a section; only the teacher's has weight decay, an average and dropout."""
    plan = {name: value for name, value in part.model_dump().items() if name in Plan.__dataclass_fields__}
    return Plan(**plan, dropout=isinstance(part, Training))


def shipped() -> dict[str, str]:
    """The recipes that come with progdist: name -> YAML text."""
    folder = files("progdist") / "recipes"
    texts = {entry.name.removesuffix(".yaml"): entry.read_text() for entry in folder.iterdir()}
    return dict(sorted(texts.items()))


def read_recipe(place: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a file, or the name of one that ships, with `key.key=value` overrides.

    Raises:
        UserError: it cannot be found or read, or says something that no recipe can say.
    """
    path = Path(place)
    known = shipped()
    if place in known:
        text = known[place]
    elif path.is_file():
        text = path.read_text()
    else:
        near = difflib.get_close_matches(place, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"recipe {place!r} is neither a file nor one that ships: {hint}use {', '.join(known)} or a path"
        )
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise UserError(f"recipe {place} is not a map of keys to values: see `progdist recipes`")
        for override in overrides:
            _override(content, override)
        return Recipe.model_validate(content)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {place} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(f"recipe {place}: {_first_problem(error)}") from error


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults and all."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _override(content: dict[Any, Any], override: str) -> None:
    """Set one dotted key; the value is read as YAML."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r} has no value: write key=value, e.g. distill.updates=500")
    *parents, last = name.split(".")
    for parent in parents:
        content = content.setdefault(_key(parent), {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override!r}: {parent} is a value, not a section")
    content[_key(last)] = yaml.safe_load(value)


def _key(word: str) -> str | int:
    return int(word) if word.isdigit() else word


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, as a sentence that says what to do."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, 0.0)
        return f"key {where} is unknown: did you mean {near[0]}? (known here: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"key {where} is missing: {problem['msg'].lower()}"
    got = "" if isinstance(problem["input"], Mapping | BaseModel) else f", got {problem['input']!r}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{got}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The known keys of the section at a place in the recipe."""
    section: type[BaseModel] = Recipe
    for name in location:
        if isinstance(name, int):
            section = StageTraining
        elif name in section.model_fields:
            section = cast(type[BaseModel], section.model_fields[name].annotation)
            section = StageTraining if name == "stages" else section
    return list(section.model_fields)
