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

SAMPLES_PER_FEATURE = 10
"""Below this many samples for each feature the Frechet distance is mostly bias: a warning is given."""


class _PrecomputedFeatures(nn.Module):
    """Features handed over as they are, where torchmetrics asks for a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of features a (N, D) and b (M, D)."""
    metric = FrechetInceptionDistance(feature=_PrecomputedFeatures(a.shape[1]), sync_on_compute=False).set_dtype(
        torch.float64
    )
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())


def frechet_interval(data: Tensor, samples: Tensor, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """The Frechet distance of features (N, D) and (M, D), and its 95 % interval over resamples of the samples.

    Resampling with repeats raises the distance by about its bias, so the percentiles are taken about their own mean.

    Returns:
        (estimate, low, high).
    """
    draw = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(resamples):
        chosen = torch.randint(len(samples), (len(samples),), generator=draw)
        distances.append(frechet_distance(data, samples[chosen]))
    values = torch.tensor(distances, dtype=torch.float64)
    low, high = (values - values.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    estimate = frechet_distance(data, samples)
    return estimate, max(0.0, estimate + low), estimate + high


def kernel_distance(data: Tensor, samples: Tensor, *, seed: int, subsets: int = 20) -> tuple[float, float]:
    """1000 times the kernel distance of features (N, D) and (M, D), and its standard error.

    The distance is that of up to 1000 vectors of each; the error is the deviation over random halves of them, which
    varies as the whole does.
    """
    size = min(len(data), len(samples), 1000)
    whole = _kernel(data, samples, size, 1, seed)[0]
    return whole, _kernel(data, samples, max(2, size // 2), subsets, seed)[1]


def _kernel(data: Tensor, samples: Tensor, size: int, subsets: int, seed: int) -> tuple[float, float]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(seed)
        precomputed = _PrecomputedFeatures(data.shape[1])
        metric = KernelInceptionDistance(precomputed, subsets=subsets, subset_size=size, sync_on_compute=False)
        metric.update(data, real=True)
        metric.update(samples, real=False)
        mean, spread = metric.compute()
    return 1000 * float(mean), 1000 * float(spread)


@dataclass(frozen=True)
class Quality:
    """One set of samples against the data, in one feature space.

    Attributes:
        features: name of the feature space.
        samples: how many were compared.
        frechet: the Frechet distance, and the 95 % interval of it.
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
    if len(images) < 2 or len(data) < 2:
        raise UserError(f"{len(images)} samples and {len(data)} data images were given: distances need at least 2 each")
    if not images.isfinite().all():
        raise UserError("the samples hold numbers that are not finite: the model is damaged, or was trained too fast")
    features = space(images)
    estimate, low, high = frechet_interval(data, features, resamples=resamples, seed=seed)
    kernel, spread = kernel_distance(data, features, seed=seed)
    named = space.labels(images) if labels is not None else None
    wanted = SAMPLES_PER_FEATURE * data.shape[1]
    few = len(images) < wanted
    return Quality(
        features=space.name,
        samples=len(images),
        frechet=estimate,
        frechet_low=low,
        frechet_high=high,
        kernel=kernel,
        kernel_spread=spread,
        agreement=None if named is None or labels is None else float((named == labels.cpu()).float().mean()),
        warning=f"{len(images)} samples for {data.shape[1]} {space.name} features: use {wanted} or more"
        if few
        else None,
    )


def root_mean_square(images: Tensor, reference: Tensor) -> float:
    """Fidelity: the RMS difference of images (N, C, H, W) from others of the same shape, both clipped to [-1, 1]."""
    return float((images.clamp(-1, 1) - reference.clamp(-1, 1)).square().mean().sqrt())
