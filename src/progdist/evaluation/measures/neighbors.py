r"""Fidelity and diversity, separately, from nearest neighbours of features.

With r_k(y) the distance of y to its k-th nearest neighbour in its own set, and B(y) the ball of that radius around y:

    precision   share of samples that are in the ball of some data,     k = 3   (Kynkaanniemi et al. 2019,
    recall      share of data that are in the ball of some sample,      k = 3    arXiv 1904.06991)
    density     data balls that a sample is in, on average, over k,     k = 5   (Naeem et al. 2020,
    coverage    share of data whose ball holds some sample,             k = 5    arXiv 2002.09797)

A ball is closed. All four depend on the number of vectors: the first MOST of either set are compared.
Density and coverage of the data's own distribution are about 1 and 1 - 2^-k. Distances are float64, in blocks.

Whether a model repeats its training data shows in how close samples x come to the data, compared with how close data
come to each other (Meehan, Chaudhuri & Dasgupta 2020, arXiv 2004.05675, compare such distances with held-out data):

    nearest_distance            median over samples of |x - y|, y the nearest of all data
    nearest_distance_of_data    median over data of the same, y the nearest other

The first is about the second for samples of the data's distribution, and 0 for copies.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from progdist._utils.memoize import once_per_tensor
from progdist.evaluation.measures.estimate import STUDENT_10, Estimate, half_deviation

MOST = 10_000  # vectors of a set that are compared
BLOCK = 1024  # rows of the table of distances in memory at a time
HALVES = 10  # random halves of the samples, for the standard errors: see STUDENT_10

PRECISION_K, COVERAGE_K = 3, 5


def neighbors(x: Tensor, data: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distance (M,) of each vector of x (M, D) to its k-th nearest of the data (N, D), N >= k, and its index."""
    blocks = x.split(max(1, BLOCK * MOST // max(MOST, len(data))))
    found = [torch.cdist(rows, data).topk(k, largest=False) for rows in blocks]
    return torch.cat([each.values[:, -1] for each in found]), torch.cat([each.indices[:, -1] for each in found])


def radii(x: Tensor, k: int) -> Tensor:
    """The distance (N,) of each vector of x (N, D) to its k-th nearest neighbour in x; needs more than k."""
    return neighbors(x, x, k + 1)[0]  # itself is the first


@once_per_tensor
def data_radii(data: Tensor, k: int) -> Tensor:
    """`radii` of the first MOST of the data (N, D): the same for every model that is compared with them."""
    return radii(data[:MOST].double(), k)


def precision_recall(data: Tensor, samples: Tensor, *, seed: int) -> dict[str, Estimate]:
    """Improved precision and recall of features (N, D) and (M, D), with more than 2 k vectors each."""
    real, made = data[:MOST].double(), samples[:MOST].double()
    reach = data_radii(data, PRECISION_K)

    def measure(rows: Tensor) -> Tensor:
        chosen = made[rows]
        own = radii(chosen, PRECISION_K)
        precise, recalled = torch.zeros(len(chosen), dtype=torch.bool), []
        for block, reached in zip(real.split(BLOCK), reach.split(BLOCK), strict=True):
            apart = torch.cdist(block, chosen)
            precise |= (apart <= reached[:, None]).any(0)
            recalled.append((apart <= own).any(1))
        return torch.stack([precise.double().mean(), torch.cat(recalled).double().mean()])

    return _estimates(("precision", "recall"), measure, len(made), seed, (1.0, 1.0))


def density_coverage(data: Tensor, samples: Tensor, *, seed: int) -> dict[str, Estimate]:
    """Density and coverage of features (N, D) and (M, D); the data have more than k vectors."""
    real, made = data[:MOST].double(), samples[:MOST].double()
    reach = data_radii(data, COVERAGE_K)

    def measure(rows: Tensor) -> Tensor:
        chosen = made[rows]
        pairs = zip(real.split(BLOCK), reach.split(BLOCK), strict=True)
        held = torch.cat([(torch.cdist(block, chosen) <= reached[:, None]).sum(1) for block, reached in pairs]).double()
        return torch.stack([held.sum() / (COVERAGE_K * len(chosen)), (held > 0).double().mean()])

    return _estimates(("density", "coverage"), measure, len(made), seed, (float("inf"), 1.0))


def nearest_distance(data: Tensor, samples: Tensor, *, seed: int) -> dict[str, Estimate]:
    """The median distance of features (M, D) to the nearest of the data's (N, D), and that of data to other data.

    The medians are over the first MOST of either set; the nearest is searched among all data.
    """
    real = data.double()
    made, own = neighbors(samples[:MOST].double(), real, 1)[0], neighbors(real[:MOST], real, 2)[0]

    def of_data(rows: Tensor) -> Tensor:
        return radii(real[rows], 1).quantile(0.5)[None]

    errors = (
        half_deviation(lambda rows: made[rows].quantile(0.5)[None], len(made), repeats=HALVES, seed=seed),
        half_deviation(of_data, len(own), repeats=HALVES, seed=seed),
    )
    names = ("nearest_distance", "nearest_distance_of_data")
    return {
        name: Estimate.normal(float(found.quantile(0.5)), float(error), errors=STUDENT_10)
        for name, found, error in zip(names, (made, own), errors, strict=True)
    }


def _estimates(
    names: tuple[str, str], measure: Callable[[Tensor], Tensor], count: int, seed: int, most: tuple[float, float]
) -> dict[str, Estimate]:
    values = measure(torch.arange(count)).tolist()
    errors = half_deviation(measure, count, repeats=HALVES, seed=seed).tolist()
    pairs = zip(names, values, errors, most, strict=True)
    return {name: Estimate.normal(value, error, 0.0, limit, STUDENT_10) for name, value, error, limit in pairs}
