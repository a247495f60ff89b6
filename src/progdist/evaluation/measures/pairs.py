r"""A student compared with its teacher: images s_i and t_i from the same noise and condition, i = 1, ..., N.

RMS difference      sqrt(mean |s_i - t_i|^2 / d), of d numbers each
share               mean |s_i - t_i|^2 over mean |t_i - t_j|^2 for j with other noise and the same condition: 0 for the
                    teacher's own images, 1 for other images of the teacher for that condition
diversity           D_s / D_t with D = sum_i |f_i - m_c(i)|^2 / sum_c (n_c - 1), m_c the mean of the n_c images of a
                    condition c: the variance due to noise. 1 for the teacher itself, 0 for a student that makes the
                    same image from any noise

unit distance       mean |s_i / |s_i| - t_i / |t_i||^2, of features: from 0, the same direction, to 4, the opposite one

The last is LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learned weights, on one feature vector per image
instead of one per position, so it does not see where in the image two images differ.

Intervals come from resampled conditions, the same for both models, or from resampled images for a single condition
(Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 6).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.measures.estimate import Estimate, centred_interval

RESAMPLES = 500


@dataclass(frozen=True)
class Pairs:
    """The results for two models' images in one feature space."""

    rms: Estimate
    share: Estimate
    diversity: Estimate
    unit: Estimate  # of features of unit length


def compare_pairs(student: Tensor, teacher: Tensor, labels: Tensor, *, seed: int = 0) -> Pairs:
    """Compare features (N, D) of images from the same noise, with condition numbers (N,); at least two of each.

    Raises:
        UserError: a condition has only one image.
    """
    s, t = student.double(), teacher.double()
    _, conditions, counts = labels.unique(return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise UserError("diversity requires several images per prompt or class: make at least two of each")
    apart, turned = (s - t).square().sum(1), (_unit(s) - _unit(t)).square().sum(1)
    within_s, within_t = (_spread(each, conditions, counts) for each in (s, t))
    degrees = (counts - 1).double()

    def of_images(values: Tensor, rows: Tensor) -> Tensor:
        """The mean of values (N,) over the conditions with these numbers."""
        return _sums(values, conditions, len(counts))[rows].sum() / counts[rows].sum()

    def rms(rows: Tensor) -> Tensor:
        return (of_images(apart, rows) / s.shape[1]).sqrt()

    def share(rows: Tensor) -> Tensor:  # two images of a condition are sqrt(2 D_t) apart
        return of_images(apart, rows) / (2 * within_t[rows].sum() / degrees[rows].sum())

    def diversity(rows: Tensor) -> Tensor:
        return within_s[rows].sum() / within_t[rows].sum()

    def unit(rows: Tensor) -> Tensor:
        return of_images(turned, rows)

    measures = (rms, share, diversity, unit)
    if len(counts) > 1:
        return Pairs(*(_estimate(measure, len(counts), seed) for measure in measures))
    one = torch.zeros(1, dtype=torch.int64)
    found = [float(measure(one)) for measure in measures]

    def resampled(rows: Tensor) -> list[float]:
        s_rows, t_rows = s[rows], t[rows]
        spread_s, spread_t = ((each - each.mean(0)).square().sum() for each in (s_rows, t_rows))
        mean = apart[rows].mean()
        pair = 2 * spread_t / (len(rows) - 1)
        numbers = ((mean / s.shape[1]).sqrt(), mean / pair, spread_s / spread_t, turned[rows].mean())
        return [float(number) for number in numbers]

    draws = torch.tensor([resampled(rows) for rows in _draws(len(s), seed)], dtype=torch.float64)
    return Pairs(*(_around(value, draw) for value, draw in zip(found, draws.T, strict=True)))


def _unit(features: Tensor) -> Tensor:
    """Features (N, D) of unit length; 0 stays 0."""
    length = features.norm(dim=1, keepdim=True)
    return features / torch.where(length > 0, length, 1)


def _sums(values: Tensor, conditions: Tensor, count: int) -> Tensor:
    """The sums (C,) of values (N,) by condition."""
    return torch.zeros(count, dtype=values.dtype).index_add(0, conditions, values)


def _spread(features: Tensor, conditions: Tensor, counts: Tensor) -> Tensor:
    """sum |f - m_c|^2 of every condition, (C,)."""
    sums = torch.zeros(len(counts), features.shape[1], dtype=features.dtype).index_add(0, conditions, features)
    means = sums / counts.unsqueeze(1)
    return _sums((features - means[conditions]).square().sum(1), conditions, len(counts))


def _draws(count: int, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(count, (count,), generator=draw) for _ in range(RESAMPLES)]


def _estimate(measure: Callable[[Tensor], Tensor], count: int, seed: int) -> Estimate:
    draws = torch.stack([measure(rows) for rows in _draws(count, seed)])
    return _around(float(measure(torch.arange(count))), draws)


def _around(value: float, draws: Tensor) -> Estimate:
    low, high = centred_interval(value, draws)
    return Estimate(value, max(0.0, low), high)
