r"""How much samples of one class differ from each other, compared with the data of that class.

With C_c the covariance of the features of class c, and p_c the class's share of the data,

    class_diversity = sum_c p_c tr C_c(samples) / sum_c p_c tr C_c(data)

the within-class scatter of discriminant analysis (Fukunaga 1990, Introduction to Statistical Pattern Recognition,
chapter 10), with the data's weights for both sets. It is 1 for samples of the data's distribution and 0 for one image
per class; a class of fewer than two samples adds nothing. A model that drops rare images of a class lowers it, and
noise raises it, so it is only meaningful together with a distance.

The interval comes from random halves.
"""

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.measures.estimate import STUDENT_10, Estimate, half_deviation

HALVES = 10  # random halves of the samples, for the standard error: see STUDENT_10


def class_diversity(
    data: Tensor, samples: Tensor, data_classes: Tensor, sample_classes: Tensor, *, seed: int
) -> dict[str, Estimate]:
    """The diversity of features (M, D) of classes (M,) relative to the data's (N, D) of classes (N,).

    Raises:
        UserError: no class of the data has two different images.
    """
    count = int(max(data_classes.max(), sample_classes.max())) + 1
    sizes = data_classes.bincount(minlength=count).double()
    shares = torch.where(sizes > 1, sizes, 0) / len(data)

    def within(features: Tensor, classes: Tensor) -> Tensor:
        return (shares * _spreads(features.double(), classes, count)).sum()

    whole = within(data, data_classes)
    if not whole > 0:
        raise UserError("class_diversity requires a class of the data with two different images: give more data")

    def measure(rows: Tensor) -> Tensor:
        return (within(samples[rows], sample_classes[rows]) / whole)[None]

    error = half_deviation(measure, len(samples), repeats=HALVES, seed=seed)
    value = measure(torch.arange(len(samples)))
    return {"class_diversity": Estimate.normal(float(value), float(error), errors=STUDENT_10)}


def _spreads(features: Tensor, classes: Tensor, count: int) -> Tensor:
    """tr C_c (count,) of features (N, D) of classes (N,); 0 for a class of fewer than two."""
    sizes = classes.bincount(minlength=count).double()
    sums = features.new_zeros(count, features.shape[1]).index_add_(0, classes, features)
    centred = features - (sums / sizes.clamp(min=1)[:, None])[classes]
    squares = features.new_zeros(count).index_add_(0, classes, centred.square().sum(1))
    return squares / (sizes - 1).clamp(min=1)
