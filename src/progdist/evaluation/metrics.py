r"""How good samples are: distances to the data, agreement with their classes, and fidelity to the teacher.

    frechet             with its 95 % interval and its bias (`measures.frechet`); FID in the features of Inception
    kernel              with its standard error (`measures.kernel`); KID in Inception's features
    inception_score     and clip_score, of samples and their captions (`measures.scores`)
    precision_recall    density_coverage and nearest_distance (`measures.neighbors`)
    class_diversity     by the classes that the space's classifier predicts (`measures.diversity`)
    fidelity            the root mean square difference of pixels in [-1, 1] from images made from the same noise

The two distances are always measured, the others on request. All are computed from features, which are all that is kept
of samples; docs/metrics.md has their conventions. `MetricConfig` names what to measure, and `open` loads its networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import LEAST_SAMPLES, Metric
from progdist._utils.words import counted
from progdist.data.images import Images
from progdist.evaluation.features import FeatureSpace, clip_space, feature_space, features_of
from progdist.evaluation.measures.diversity import class_diversity
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import WIDE, Frechet, frechet_bias, resampled_frechet
from progdist.evaluation.measures.kernel import kernel_distance
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.neighbors import density_coverage, nearest_distance, precision_recall
from progdist.evaluation.measures.scores import clip_score, inception_score
from progdist.evaluation.measures.statistics import Statistics, read_statistics
from progdist.evaluation.record import Quality
from progdist.evaluation.summary import Summary

SAMPLES_PER_FEATURE = 10  # with fewer samples per feature the Frechet distance is mostly bias: a warning
MOSTLY = 0.5  # the share of bias in a Frechet distance from which a warning calls it most of it
PUBLISHED = 50_000  # samples in published FIDs
DATA_IMAGES = 10_000  # data images to compare samples with, if there are as many; more for more samples
NEIGHBOR_METRICS = {
    "precision_recall": precision_recall, "density_coverage": density_coverage, "nearest_distance": nearest_distance
}  # fmt: skip
DEFAULT_METRICS: tuple[Metric, ...] = ("precision_recall", "density_coverage")  # of a run whose recipe names none
CLASSIFIER_METRICS = ("inception_score", "class_diversity")  # only in a classifier's features


@dataclass(frozen=True)
class Reference:
    """What samples are compared with in one feature space."""

    features: Tensor | None  # of the data, (N, D); None if only moments are known
    frechet: Frechet  # the Frechet distance to them


@dataclass(frozen=True)
class MetricConfig:
    """What to measure.

    Args:
        features: names of the feature spaces in which samples are compared with the data.
        metrics: what to measure besides the Frechet and the kernel distance.
        weights: files or folders of weights, by network.
        references: files of statistics that replace the data, by space.
    """

    features: tuple[str, ...] = ("pixels",)
    metrics: tuple[Metric, ...] = ()
    weights: Mapping[str, Path] = field(default_factory=dict)
    references: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a single name where a list of names is expected."""
        for name, given in (("features", self.features), ("metrics", self.metrics)):
            if isinstance(given, str):
                raise UserError(f"{name} is {given!r}, expected names in a list: [{given!r}]")

    def check(self, *, captions: bool) -> None:
        """Refuse a name that is repeated or has no effect, or scores of captions if there are none."""
        networks = {name.partition("_")[0] for name in self.features}
        networks |= {"clip"} if "clip_score" in self.metrics else set()
        for kind, names in (("features", self.features), ("metric", self.metrics)):
            if again := [name for place, name in enumerate(names) if name in names[:place]]:
                raise UserError(f"{kind} {again[0]} is named twice: name it once")
        for kind, files, used in (("weights", self.weights, networks), ("reference", self.references, self.features)):
            if unused := [name for name in files if name not in used]:
                raise UserError(f"{kind} {unused[0]}={files[unused[0]]} is not used by any metric: remove it")
        if "clip_score" in self.metrics and not captions:
            raise UserError("clip_score requires captions, and the model or the data has none: remove it")

    def open(self, image: tuple[int, ...], *, captions: bool) -> "Metrics":
        """The metrics for images (channels, height, width), with or without captions.

        Raise a UserError as in `check`, or if a name is unknown, or weights or statistics are damaged or do not fit.
        """
        self.check(captions=captions)
        statistics = {name: read_statistics(path, name) for name, path in self.references.items()}
        spaces = [feature_space(name, image, self.weights) for name in self.features]
        for name in CLASSIFIER_METRICS:
            if name in self.metrics and not any(space.read_out for space in spaces):
                raise UserError(
                    f"{name} requires the features of a classifier: add digits, fashion-mnist or inception to the "
                    "features, or remove it"
                )
        for space in spaces:
            if space.name in statistics:
                _check_width(space.name, statistics[space.name], space(torch.zeros(1, *image)))
        clip = Clip(*clip_space(self.weights)) if "clip_score" in self.metrics else None
        return Metrics(spaces, self.metrics, statistics, clip)


@dataclass(frozen=True)
class Clip:
    """CLIP's embeddings of images as a feature space, and of captions."""

    space: FeatureSpace
    embed: Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Metrics:
    """Feature spaces and metrics, ready to measure samples."""

    spaces: Sequence[FeatureSpace]  # where samples are compared with the data
    names: tuple[Metric, ...] = ()  # what is measured besides the two distances
    statistics: Mapping[str, Statistics] = field(default_factory=dict)  # in place of the data, by feature space
    clip: Clip | None = None  # scores captions, or None

    @cached_property
    def every_space(self) -> list[FeatureSpace]:
        """The spaces whose features of samples are kept."""
        return [*self.spaces, *([self.clip.space] if self.clip else [])]

    def reference(self, space: FeatureSpace, features: Tensor | None) -> Reference:
        """The statistics that replace the data in a space, or else features (N, D) of the data; one is required."""
        statistics = self.statistics.get(space.name)
        if statistics is not None:
            if features is not None:
                _check_width(space.name, statistics, features)
            return Reference(features, Frechet(statistics.moments))
        if features is None:
            raise UserError(f"{space.name} features require the data, or a reference: give one")
        return Reference(features, Frechet(moments(features)))

    def references(self, images: Images | None, samples: int, seed: int) -> list[Reference]:
        """What `samples` samples are compared with in every space: images of the data, or only statistics."""
        references = []
        for space in self.spaces:
            statistics = self.statistics.get(space.name)
            features = statistics.features if statistics else None
            if images is not None:
                features = features_of(space, images, images.chosen(max(samples, DATA_IMAGES), seed))
            references.append(self.reference(space, features))
        return references

    def measure(self, samples: Summary, references: Sequence[Reference], resamples: int = 100) -> tuple[Quality, ...]:
        """The quality of samples in every space; arguments and errors as in `quality`."""
        pairs = zip(self.spaces, references, strict=True)
        return tuple(quality(space, each, samples, metrics=self.names, resamples=resamples) for space, each in pairs)

    def clip_score(self, samples: Summary, numbers: Tensor, captions: Sequence[str]) -> Estimate | None:
        """The CLIP score of samples and their captions, by the captions' numbers (N,); None if it is not measured."""
        if self.clip is None:
            return None
        used, place = numbers.unique(return_inverse=True)
        embedded = self.clip.embed([captions[int(number)] for number in used])
        return clip_score(samples.features[self.clip.space.name], embedded[place])


def _check_width(name: str, statistics: Statistics, features: Tensor) -> None:
    """Refuse statistics with another number of features than (N, D)."""
    expected, width = len(statistics.moments.mean), features.shape[1]
    if expected != width:
        held = counted(expected, "feature")
        raise UserError(f"the reference of {name} has {held}, expected {width} as in the samples: give another")


def quality(
    space: FeatureSpace,
    reference: Reference | Tensor,
    samples: Summary,
    *,
    metrics: Sequence[Metric] = (),
    resamples: int = 100,
    seed: int = 0,
) -> Quality:
    """Compare samples with the data, or with features (N, D) of the data, in one feature space.

    Besides the two distances it measures those metrics that this space has. The seed is for bootstrap and subsets.

    Raises:
        UserError: there are fewer than two samples, images are not finite, or a metric needs more of either.
    """
    data = reference if isinstance(reference, Tensor) else reference.features
    _require("the distance", 2, samples=len(samples), data=data)
    if not samples.finite:
        raise UserError(
            "the samples have values that are not finite: restore the model, or train it with a lower learning rate"
        )
    features = samples.features[space.name]
    frechet = Frechet(moments(reference)) if isinstance(reference, Tensor) else reference.frechet
    resampled = resampled_frechet(frechet, features, resamples=resamples, seed=seed)
    kernel, error = (None, None) if data is None else kernel_distance(data, features, seed=seed)
    bias, value = frechet_bias(frechet, features, seed=seed), resampled.estimate.value
    few = _too_few(space.name, len(samples), features.shape[1], value, bias)
    return Quality(
        features=space.name,
        samples=len(samples),
        frechet=value,
        frechet_low=resampled.estimate.low,
        frechet_high=resampled.estimate.high,
        kernel=kernel,
        kernel_spread=error,
        agreement=samples.matches[space.name] / len(samples) if space.name in samples.matches else None,
        warning="; ".join([*_warnings(space, len(samples), bias), *few]) or None,
        interval="infinitesimal jackknife" if features.shape[1] > WIDE else "bootstrap",
        frechet_bias=bias,
        metrics={key: value for name in metrics for key, value in _measured(name, space, data, features, seed).items()},
        checksum=space.checksum,
        too_few=bool(few),
        resampled=resampled,
    )


def _measured(
    name: Metric, space: FeatureSpace, data: Tensor | None, features: Tensor, seed: int
) -> dict[str, Estimate]:
    """One metric in one feature space; empty if the space does not have it."""
    if name == "clip_score":
        return {}
    _require(name, LEAST_SAMPLES, samples=len(features), data=data)
    logits = space.logits(features) if name in CLASSIFIER_METRICS else None
    if name == "inception_score":
        return {} if logits is None else inception_score(logits, seed=seed)
    if data is None:
        raise UserError(f"{name} requires images of the data, and a reference has only moments: give the data, too")
    if name in NEIGHBOR_METRICS:
        return NEIGHBOR_METRICS[name](data, features, seed=seed)
    seen = space.logits(data) if logits is not None else None
    if logits is None or seen is None:
        return {}
    return class_diversity(data, features, seen.argmax(1), logits.argmax(1), seed=seed)


def _require(what: str, least: int, *, samples: int, data: Tensor | None) -> None:
    """Refuse too few samples, or too few features of the data."""
    if samples < least:
        raise UserError(f"{what} requires at least {least} samples, got {samples}: make more")
    if data is not None and len(data) < least:
        raise UserError(f"{what} requires at least {least} images of the data, got {len(data)}: give more")


def _too_few(name: str, count: int, width: int, value: float, bias: float | None) -> list[str]:
    """Why there are too few samples for their Frechet distance; empty if there are enough."""
    enough, reasons = SAMPLES_PER_FEATURE * width, []
    if count < enough:
        reasons.append(f"{counted(count, 'sample')}, few for {width} {name} features: use {enough} or more")
    if bias is not None and bias > MOSTLY * value:
        reasons.append(
            f"most of the Fréchet distance of {value:.3g} in {name} features, about {bias:.2g}, is the bias of "
            f"{counted(count, 'sample')}, which its interval contains, too: use more"
        )
    return reasons


def _warnings(space: FeatureSpace, count: int, bias: float | None) -> list[str]:
    """Other reasons to doubt a distance of this many samples."""
    warnings = [space.warning] if space.warning else []
    if space.name.startswith("inception") and count != PUBLISHED and bias is not None:
        warnings.append(
            f"published FIDs use {PUBLISHED:,} samples, and that of {count:,} is about {bias:.2g} too large"
        )
    return warnings
