r"""How good samples are: distances to the data, agreement with their classes, and fidelity to the teacher.

    frechet             with its 95 % interval and its bias (`measures.frechet`); FID in the features of Inception
    kernel              with its standard error (`measures.kernel`); KID in those
    inception_score     `measures.inception_score`
    precision_recall    `measures.neighbors`
    density_coverage    `measures.neighbors`
    clip_score          of samples and their captions (`measures.clip_score`)
    fidelity            the root mean square difference of pixels in [-1, 1] from images made from the same noise

The two distances are always given, the others on demand. All are computed from features, which are all that is kept of
samples; docs/metrics.md has their conventions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import LEAST_SAMPLES, Metric
from progdist.evaluation.features import FeatureSpace
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import WIDE, Frechet, Resampled, frechet_bias, resampled_frechet
from progdist.evaluation.measures.inception_score import inception_score
from progdist.evaluation.measures.kernel import kernel_distance
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.neighbors import density_coverage, precision_recall
from progdist.evaluation.summary import Summary, summarize

SAMPLES_PER_FEATURE = 10
"""Below this many samples for each feature the Frechet distance is mostly bias: a warning is given."""

PUBLISHED = 50_000
"""Samples of published FIDs."""

FROM_NEIGHBORS: dict[str, Callable[..., dict[str, Estimate]]] = {
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
}
"""What is measured from features of data and samples."""


@dataclass(frozen=True)
class Quality:
    """One set of samples against the data, in one feature space.

    Attributes:
        features: name of the feature space.
        samples: how many were compared.
        frechet: the Frechet distance, and the 95 % interval of it.
        interval: how the interval was found, `bootstrap` or `infinitesimal jackknife` (see `resampled_frechet`).
        kernel: 1000 times the kernel distance, and its standard error; None where only moments of the data are known.
        agreement: share of samples that the classifier gives the class they were made for; None without classes.
        warning: why the numbers are to be doubted, or None.
        frechet_bias: by how much the Frechet distance is too large for want of samples, about; None below 4 samples.
        metrics: what else was asked for, by its name.
        checksum: the SHA-256 of the network's weights, where they are not shipped.
    """

    features: str
    samples: int
    frechet: float
    frechet_low: float
    frechet_high: float
    kernel: float | None
    kernel_spread: float | None
    agreement: float | None
    warning: str | None
    interval: str
    frechet_bias: float | None = None
    metrics: dict[str, Estimate] = field(default_factory=dict)
    checksum: str | None = None


def quality(
    space: FeatureSpace,
    data: Tensor,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    resamples: int = 100,
    seed: int = 0,
) -> Quality:
    """Compare images with the data.

    Args:
        space: where to compare.
        data: features of the data, (N, D).
        images: (M, C, H, W), about [-1, 1].
        labels: the classes that the images were made for, (M,), or None.
        resamples: of the bootstrap.
        seed: of the bootstrap and the subsets.

    Raises:
        UserError: fewer than two samples, or images that are not finite.
    """
    return summary_quality(space, data, summarize([space], images, labels), resamples=resamples, seed=seed)


def summary_quality(
    space: FeatureSpace,
    data: Tensor | None,
    samples: Summary,
    *,
    distance: Frechet | None = None,
    metrics: Sequence[Metric] = (),
    resamples: int = 100,
    seed: int = 0,
) -> Quality:
    """Compare samples with the data in one feature space, from what was kept of them; see `quality`.

    Args:
        space: where to compare.
        data: features of the data, (N, D); None where only their moments are known.
        samples: what was kept of the samples.
        distance: the Frechet distance to the reference; to `data` if not given.
        metrics: what to measure beside the two distances, as far as this space has it.
        resamples: of the bootstrap.
        seed: of the bootstrap and the subsets.
    """
    found, _ = resampled_quality(
        space, data, samples, distance=distance, metrics=metrics, resamples=resamples, seed=seed
    )
    return found


def resampled_quality(
    space: FeatureSpace,
    data: Tensor | None,
    samples: Summary,
    *,
    distance: Frechet | None = None,
    metrics: Sequence[Metric] = (),
    resamples: int = 100,
    seed: int = 0,
) -> tuple[Quality, Resampled]:
    """What `summary_quality` gives, and the resamples that its interval is of, which tell two models apart.

    Arguments and errors as there (see `measures.paired`).
    """
    _require("the distance", 2, samples=len(samples), data=data)
    if not samples.finite:
        raise UserError("the samples hold numbers that are not finite: the model is damaged, or was trained too fast")
    features = samples.features[space.name]
    distance = distance or Frechet(moments(_needed(data, "the Frechet distance")))
    found = resampled_frechet(distance, features, resamples=resamples, seed=seed)
    kernel, error = (None, None) if data is None else kernel_distance(data, features, seed=seed)
    bias = frechet_bias(distance, features, seed=seed)
    result = Quality(
        features=space.name,
        samples=len(samples),
        frechet=found.estimate.value,
        frechet_low=found.estimate.low,
        frechet_high=found.estimate.high,
        kernel=kernel,
        kernel_spread=error,
        agreement=samples.matches[space.name] / len(samples) if space.name in samples.matches else None,
        warning="; ".join(_warnings(space, len(samples), features.shape[1], bias)) or None,
        interval="infinitesimal jackknife" if features.shape[1] > WIDE else "bootstrap",
        frechet_bias=bias,
        metrics={key: value for name in metrics for key, value in _measured(name, space, data, features, seed).items()},
        checksum=space.checksum,
    )
    return result, found


def _measured(
    name: Metric, space: FeatureSpace, data: Tensor | None, features: Tensor, seed: int
) -> dict[str, Estimate]:
    """One of METRICS in one feature space; nothing where the space does not have it."""
    if name == "clip_score":
        return {}
    _require(name, LEAST_SAMPLES, samples=len(features), data=data)
    if name in FROM_NEIGHBORS:
        return FROM_NEIGHBORS[name](_needed(data, name), features, seed=seed)
    logits = space.logits(features)
    return {} if logits is None else inception_score(logits, seed=seed)


def _require(what: str, least: int, *, samples: int, data: Tensor | None) -> None:
    """Refuse too few samples, or too few features of the data, where there are any: which of the two it is."""
    if samples < least:
        raise UserError(f"{what} needs at least {least} samples, and {samples} were made: make more")
    if data is not None and len(data) < least:
        raise UserError(f"{what} needs at least {least} images of the data, which has {len(data)}: give more")


def _needed(data: Tensor | None, what: str) -> Tensor:
    if data is None:
        raise UserError(f"{what} needs images of the data, and a reference of moments holds none: give the data, too")
    return data


def _warnings(space: FeatureSpace, count: int, width: int, bias: float | None) -> list[str]:
    """Why a distance of so many samples is to be doubted."""
    wanted, found = SAMPLES_PER_FEATURE * width, [space.warning] if space.warning else []
    if count < wanted:
        found.append(f"{count} samples for {width} {space.name} features: use {wanted} or more")
    if space.name.startswith("inception") and count != PUBLISHED and bias is not None:
        found.append(
            f"published FIDs are of {PUBLISHED:,} samples, and that of {count:,} is about {bias:.2g} too large"
        )
    return found


def root_mean_square(images: Tensor, reference: Tensor) -> float:
    """Fidelity: the RMS difference of images (N, C, H, W) from others of the same shape, both clipped to [-1, 1]."""
    return float((images.clamp(-1, 1) - reference.clamp(-1, 1)).square().mean().sqrt())
