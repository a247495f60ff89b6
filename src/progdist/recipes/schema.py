"""The sections of a recipe other than its trainings: data, noise, network, evaluation."""

from collections.abc import Callable, Collection
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from progdist._utils.names import LEAST_SAMPLES, Features, Metric, Precision
from progdist.data.images import ImageTransform, Resample
from progdist.data.pictures import background_colour
from progdist.data.samples import in_words, is_teacher, sample_count
from progdist.data.tables import Columns
from progdist.diffusion.schedule import Cosine, Discrete, RectifiedFlow, Schedule

Share = Annotated[float, Field(ge=0, lt=1)]
OF_SAMPLES = ("prompts", "steps")  # keys of `data` that apply to the teacher's own samples


def one_of(names: Collection[str]) -> AfterValidator:
    """A validator for names in a registry."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"{name!r} is unknown: use one of {', '.join(names)}")
        return name

    return AfterValidator(check)


NOISES: dict[str, Callable[["Noise"], Schedule]] = {
    "cosine": lambda noise: Cosine(noise.log_snr_max, noise.log_snr_min),
    "linear": lambda noise: Discrete.linear(num_train_timesteps=noise.num_train_timesteps),
    "scaled_linear": lambda noise: Discrete.scaled_linear(num_train_timesteps=noise.num_train_timesteps),
    "rectified_flow": lambda noise: RectifiedFlow(),
}
"""Kind of noise in a recipe -> its schedule."""


class Part(BaseModel):
    """A section of a recipe: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class Data(Part):
    """Where the images come from and how they are framed; `classes`, if set, is checked against the data.

    For a table (`hub:`, `parquet:`, `wds:`) the columns of image and caption can be named; a named caption column makes
    its rows pairs (see `progdist.data.tables`).

    With a `size` images are cropped to a square in the middle, or to `crops` squares at random places along the longer
    side (see `progdist.data.sources`). Transparent images are composed on the `background`, a colour's name or code,
    white by default.

    `teacher:5000` uses the teacher's own samples in place of a data set: in `steps` steps each (by default a divisor of
    the chain's first count, up to 64), for the `prompts` of a text file in turn if the teacher takes prompts, and of
    `size` pixels if its network makes any size. `teacher` alone makes one sample per prompt (see
    `progdist.runs.teacher_samples`).
    """

    source: str
    classes: PositiveInt | None = None
    size: Annotated[int, Field(gt=0, le=2**16)] | None = None
    channels: Literal[1, 3] | None = None
    resample: Resample = "area"
    background: str | None = None
    crops: Annotated[int, Field(gt=0, le=10_000)] = 1
    image_column: str | None = None
    caption_column: str | None = None
    flip: bool = False
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    prompts: str | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if is_teacher(self.source):
            return self._of_the_teacher()
        if idle := [name for name in OF_SAMPLES if getattr(self, name) is not None]:
            raise ValueError(f"data.{idle[0]} applies only to samples of the teacher, data.source: teacher:COUNT")
        if self.crops > 1 and self.size is None:
            raise ValueError("crops requires data.size")
        if self.resample != "area" and self.size is None:
            raise ValueError("data.resample requires data.size")
        background_colour(self.background)
        return self

    def _of_the_teacher(self) -> Self:
        """Refuse a source without a count of samples, and keys that apply only to image files."""
        defaults = {name: each.default for name, each in type(self).model_fields.items()}
        if sample_count(self.source) is None and self.prompts is None:
            raise ValueError("data.source teacher requires a count, e.g. teacher:5000, or data.prompts")
        for name, default in defaults.items():
            if name not in ("source", "workers", "size", *OF_SAMPLES) and getattr(self, name) != default:
                raise ValueError(f"data.{name} applies only to image data, not to samples of the teacher")
        return self

    @property
    def against(self) -> str:
        """What the run's samples are compared with, in words."""
        count = sample_count(self.source) if is_teacher(self.source) else None
        return "the data" if count is None else in_words(count)

    def transform(self) -> ImageTransform:
        """How an image becomes a tensor."""
        return ImageTransform(self.size, self.channels, self.resample, self.background)

    def columns(self) -> Columns:
        """The named columns."""
        return Columns(self.image_column, self.caption_column)


class Noise(Part):
    """The schedule: cosine with its log-SNR bounds, linear betas, or a rectified flow."""

    kind: Annotated[str, one_of(NOISES)] = "cosine"
    log_snr_max: Annotated[float, Field(allow_inf_nan=True)] = 20.0
    log_snr_min: Annotated[float, Field(allow_inf_nan=True)] = -20.0
    num_train_timesteps: Annotated[int, Field(gt=0, le=10**6)] = 1024

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.log_snr_max > self.log_snr_min:
            raise ValueError(f"log_snr_max {self.log_snr_max} is not above log_snr_min {self.log_snr_min}")
        if self.kind != "cosine" and (self.log_snr_max, self.log_snr_min) != (20.0, -20.0):
            raise ValueError(
                f"log_snr_max and log_snr_min apply only to the cosine schedule, got {self.kind}: remove them"
            )
        return self

    def build(self) -> Schedule:
        """The schedule itself."""
        return NOISES[self.kind](self)


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


class Evaluation(Part):
    """How the models of the run are measured.

    Models of more than `most_steps` steps are not measured; the reference is the teacher at the largest measured count.
    The teacher is measured again at every `teacher_every`-th count of the chain, and with `solver`, too, which shows
    the effect of a better sampler without distillation. Models that take a guidance scale are measured at `guidance`,
    or at the default of their pipeline. `cuda_graphs` samples small networks faster (see docs/performance.md).

    The Frechet and the kernel distance are measured in all `features`, and the `metrics`, by default precision_recall
    and density_coverage if samples and data are enough for these. `reference` names files of statistics, e.g.
    `{inception: stats.npz}`, that replace the data in the Frechet distance; `weights` names files or folders of
    weights, e.g. `{inception: FILE, clip: FOLDER}` (see docs/metrics.md).
    """

    samples: Annotated[int, Field(ge=2, le=10**8)] = 2048
    features: tuple[Features, ...] = ("pixels",)
    metrics: tuple[Metric, ...] | None = None
    reference: dict[Features, str] = {}
    weights: dict[Literal["inception", "dinov2", "clip"], str] = {}
    resamples: Annotated[int, Field(ge=2, le=10**6)] = 100
    batch: PositiveInt = 256
    precision: Precision = "auto"
    clip: bool = False
    cuda_graphs: bool = False
    most_steps: PositiveInt | None = None
    teacher_every: PositiveInt = 1
    solver: Literal["dpmpp"] | None = "dpmpp"
    guidance: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.features:
            raise ValueError("features is empty: name at least one, e.g. pixels")
        if self.metrics and self.samples < LEAST_SAMPLES:
            raise ValueError(f"metrics requires samples of at least {LEAST_SAMPLES}, got {self.samples}")
        return self
