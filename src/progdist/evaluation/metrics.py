r"""How good samples are: distances to the data, agreement with their classes, and fidelity to the teacher.

    Frechet distance   |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features' means and covariances
                       (Heusel et al. 2017, arXiv 1706.08500)
    kernel distance    the squared maximum mean discrepancy under (f.g / D + 1)^3 (Binkowski et al. 2018,
                       arXiv 1801.01401), times 1000
    fidelity           the root mean square difference of pixels in [-1, 1] from images made from the same noise

Both distances are torchmetrics', of one process's features alone. The Frechet distance has a positive bias of order
1/n, so compare only distances of equally many samples.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from progdist._utils.errors import UserError
from progdist.evaluation.features import FeatureSpace
from progdist.evaluation.summary import Summary, summarize

SAMPLES_PER_FEATURE = 10
"""Below this many samples for each feature the Frechet distance is mostly bias: a warning is given."""

WIDE = 1024
"""Features beyond which a Frechet distance is computed once, and its interval is not resampled."""


class _PrecomputedFeatures(nn.Module):
    """Features handed over as they are, where torchmetrics asks for a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


class _Frechet:
    """Frechet distances of several sets of samples to one set of data, whose moments are computed once."""

    def __init__(self, data: Tensor) -> None:
        network = _PrecomputedFeatures(data.shape[1])
        metric = FrechetInceptionDistance(feature=network, reset_real_features=False, sync_on_compute=False)
        self.metric = metric.set_dtype(torch.float64)
        self.metric.update(data.double(), real=True)

    def __call__(self, samples: Tensor) -> float:
        self.metric.reset()
        self.metric.update(samples.double(), real=False)
        return float(self.metric.compute())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of features a (N, D) and b (M, D)."""
    return _Frechet(a)(b)


def frechet_interval(data: Tensor, samples: Tensor, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """The Frechet distance of features (N, D) and (M, D), and its 95 % interval over resamples of the samples.

    Resampling with repeats raises the distance by about its bias, so the percentiles are taken about their own mean.
    Beyond WIDE features a distance takes seconds, and the interval is 1.96 of `frechet_error` to either side.

    Returns:
        (estimate, low, high).
    """
    distance = _Frechet(data)
    estimate = distance(samples)
    if data.shape[1] > WIDE:
        half = 1.96 * frechet_error(data, samples)
        return estimate, max(0.0, estimate - half), estimate + half
    draw = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(resamples):
        chosen = torch.randint(len(samples), (len(samples),), generator=draw)
        distances.append(distance(samples[chosen]))
    values = torch.tensor(distances, dtype=torch.float64)
    low, high = (values - values.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return estimate, max(0.0, estimate + low), estimate + high


def frechet_error(data: Tensor, samples: Tensor) -> float:
    r"""The standard error of the Frechet distance of features (N, D) and (M, D), by the infinitesimal jackknife.

    To first order a sample x moves the distance by its influence (Efron 1982, The Jackknife, the Bootstrap and Other
    Resampling Plans, chapter 6; the gradient is that of the Bures distance),

        I(x) = 2 (m_b - m_a).(x - m_b) + (x - m_b)' (1 - T) (x - m_b) - its mean,
        T = C_b^(-1/2) (C_b^(1/2) C_a C_b^(1/2))^(1/2) C_b^(-1/2),

    and the error is the root of mean I^2 / M: two eigendecompositions, whatever the number of samples.
    """
    a, b = data.double(), samples.double()
    shift, centred = b.mean(0) - a.mean(0), b - b.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(b) - 1))
    spans = values > values.max() * 1e-10  # beside these no sample varies
    roots, vectors = values[spans].sqrt(), vectors[:, spans]
    inner = roots[:, None] * (vectors.T @ a.T.cov() @ vectors) * roots
    squares, turn = torch.linalg.eigh(inner)
    middle = (turn * squares.clamp(min=0).sqrt()) @ turn.T
    within = centred @ vectors
    moved = within / roots
    influence = 2 * centred @ shift + within.square().sum(1) - (moved @ middle * moved).sum(1)
    return float(influence.std(correction=0)) / len(b) ** 0.5


def kernel_distance(data: Tensor, samples: Tensor, *, seed: int, subsets: int = 20) -> tuple[float, float]:
    """1000 times the kernel distance of features (N, D) and (M, D), and its standard error.

    The distance is that of up to 1000 vectors of each; the error is the deviation over random halves of them, which
    varies as the whole does.
    """
    size = min(len(data), len(samples), 1000)
    distance = _kernel(data, samples, size, 1, seed)[0]
    return distance, _kernel(data, samples, max(2, size // 2), subsets, seed)[1]


def _kernel(data: Tensor, samples: Tensor, size: int, subsets: int, seed: int) -> tuple[float, float]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(seed)
        precomputed = _PrecomputedFeatures(data.shape[1])
        metric = KernelInceptionDistance(precomputed, subsets=subsets, subset_size=size, sync_on_compute=False)
        metric.update(data, real=True)
        metric.update(samples, real=False)
        mean, deviation = metric.compute()
    return 1000 * float(mean), 1000 * float(deviation)


@dataclass(frozen=True)
class Quality:
    """One set of samples against the data, in one feature space.

    Attributes:
        features: name of the feature space.
        samples: how many were compared.
        frechet: the Frechet distance, and the 95 % interval of it.
        interval: how the interval was found, `bootstrap` or `infinitesimal jackknife` (see `frechet_interval`).
        kernel: 1000 times the kernel distance, and its standard error.
        agreement: share of samples that the classifier gives the class they were made for; None without classes.
        warning: why the numbers are to be doubted, or None.
    """

    features: str
    samples: int
    frechet: float
    frechet_low: float
    frechet_high: float
    kernel: float
    kernel_spread: float
    agreement: float | None
    warning: str | None
    interval: str


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
    summary = summarize([space], images, labels)
    return summary_quality(space.name, data, summary, resamples=resamples, seed=seed)


def summary_quality(name: str, data: Tensor, samples: Summary, *, resamples: int = 100, seed: int = 0) -> Quality:
    """Compare samples with the data in the feature space of a name, from what was kept of them; see `quality`."""
    if len(samples) < 2 or len(data) < 2:
        raise UserError(
            f"{len(samples)} samples and {len(data)} data images were given: distances need at least 2 each"
        )
    if not samples.finite:
        raise UserError("the samples hold numbers that are not finite: the model is damaged, or was trained too fast")
    features, width = samples.features[name], data.shape[1]
    estimate, low, high = frechet_interval(data, features, resamples=resamples, seed=seed)
    kernel, error = kernel_distance(data, features, seed=seed)
    wanted = SAMPLES_PER_FEATURE * width
    few = f"{len(samples)} samples for {width} {name} features: use {wanted} or more"
    return Quality(
        features=name,
        samples=len(samples),
        frechet=estimate,
        frechet_low=low,
        frechet_high=high,
        kernel=kernel,
        kernel_spread=error,
        agreement=samples.matches[name] / len(samples) if name in samples.matches else None,
        warning=few if len(samples) < wanted else None,
        interval="infinitesimal jackknife" if width > WIDE else "bootstrap",
    )


def root_mean_square(images: Tensor, reference: Tensor) -> float:
    """Fidelity: the RMS difference of images (N, C, H, W) from others of the same shape, both clipped to [-1, 1]."""
    return float((images.clamp(-1, 1) - reference.clamp(-1, 1)).square().mean().sqrt())
