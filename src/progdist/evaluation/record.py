"""The result of an evaluation: an `EvaluationRecord` for a model at a step count, a line of evaluations.jsonl."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from typing import Any, TypeVar, get_args, get_type_hints

from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Resampled

Part = TypeVar("Part")


@dataclass(frozen=True)
class Quality:
    """One set of samples compared with the data, in one feature space."""

    features: str  # name of the feature space
    samples: int  # how many were compared
    frechet: float  # the Frechet distance
    frechet_low: float  # the ends of its 95 % interval
    frechet_high: float
    kernel: float | None  # 1000 times the kernel distance; None if only moments of the data are known
    kernel_spread: float | None  # its standard error
    agreement: float | None  # share of samples that the classifier assigns to their class; None without classes
    warning: str | None  # why to doubt the numbers, or None
    interval: str  # how the interval was computed, `bootstrap` or `infinitesimal jackknife` (see `resampled_frechet`)
    frechet_bias: float | None = None  # the approximate bias of `frechet` from too few samples; None below 4
    metrics: dict[str, Estimate] = field(default_factory=dict)  # further metrics, by name
    too_few: bool = False  # whether the samples are too few for a verdict; the warning says why
    checksum: str | None = None  # the SHA-256 of the network's weights, if they are not shipped
    resampled: Resampled | None = field(default=None, repr=False, compare=False)  # for intervals; not in the JSON

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        content = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "resampled"}
        return content | {"metrics": {name: asdict(value) for name, value in self.metrics.items()}}


@dataclass(frozen=True)
class EvaluationRecord:
    """One model, measured at one step count.

    In a run `model` is `teacher`, `teacher_dpmpp` if DPM-Solver++ sampled it, `converted` (the student of stage 0) or
    `student`; elsewhere it is the evaluated folder.
    """

    model: str
    steps: int  # sampling steps
    method: str  # sampling method
    network_evaluations: int  # per sample
    seconds_per_image: float  # of sampling
    rmse: float | None  # to the teacher's images from the same noise, in [-1, 1]; None without a teacher
    quality: tuple[Quality, ...]  # compared with the data, one per feature space
    training: Mapping[str, Any] = field(default_factory=dict)  # numbers of the model's training
    captions: tuple[str, ...] = ()  # the captions of the images that a report shows one by one
    guidance: float | None = None  # the scale at which it was sampled; None if it takes none
    guidance_grids: tuple[float, ...] = ()  # scales at which images were sampled for the report, including `guidance`
    clip_score: Estimate | None = None  # of the samples and their captions

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without empty fields."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        content |= {
            "quality": [each.to_json() for each in self.quality],
            "training": dict(self.training),
            "clip_score": self.clip_score and asdict(self.clip_score),
        }
        optional = ("captions", "guidance", "guidance_grids", "clip_score")
        return {name: value for name, value in content.items() if name not in optional or value not in (None, ())}

    @classmethod
    def from_json(cls, content: object) -> "EvaluationRecord":
        """Read what `to_json` returned. Raise a LookupError or a TypeError if it is damaged."""
        estimate = partial(_read, Estimate)
        quality = partial(_read, Quality, metrics=lambda each: {name: estimate(value) for name, value in each.items()})
        readers = {"training": dict, "captions": tuple, "guidance_grids": tuple, "clip_score": estimate}
        return _read(cls, content, quality=lambda each: tuple(map(quality, each)), **readers)

    def row(self, quality: Quality) -> dict[str, Any]:
        """A flat JSON object for one feature space, as printed by `progdist evaluate --json`."""
        names = ("model", "steps", "guidance", "network_evaluations", "seconds_per_image", "rmse")
        clip_score = self.clip_score and asdict(self.clip_score)
        return {name: getattr(self, name) for name in names} | {"clip_score": clip_score} | quality.to_json()


def _read(kind: type[Part], content: object, **readers: Callable[[Any], object]) -> Part:
    """A dataclass from a JSON object: `readers` read some fields, all others must have the declared types."""
    if not isinstance(content, dict):
        raise TypeError(f"{kind.__name__} is {str(content)[:20]!r}, expected a JSON object")
    types, values = get_type_hints(kind), dict[str, Any]()
    for each in fields(kind):  # pyright: ignore[reportArgumentType]
        required = each.default is MISSING and each.default_factory is MISSING
        if not required and each.name not in content:
            continue
        value, expected = content[each.name], types[each.name]
        if each.name in readers:
            value = readers[each.name](value)
        elif not isinstance(value, expected | int if float in (expected, *get_args(expected)) else expected):
            raise TypeError(f"{each.name} is {str(value)[:20]!r}")
        values[each.name] = value
    return kind(**values)
