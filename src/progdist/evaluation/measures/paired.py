r"""Whether one model's samples are nearer to the data than another's, by paired resamples.

Models that start from the same noise make samples that belong together: what a noise makes of one it makes of the
other. Resampling the same rows of both (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 8) keeps
that, and the interval of the ratio of their distances is narrower than two intervals apart would say. Both distances
have about the same bias, which draws their ratio towards 1.
"""

from progdist.evaluation.measures.estimate import Estimate, centred_interval
from progdist.evaluation.measures.frechet import Resampled


def ratio(one: Resampled, other: Resampled, *, linear: bool) -> Estimate:
    """The distance of one model over that of another, with its 95 % interval over paired resamples.

    Args:
        one: above.
        other: below; of the same data, number of samples and seed.
        linear: to first order, as the distances of wide features are.
    """
    estimate = one.estimate.value / other.estimate.value
    draws = 1 + one.relative - other.relative if linear else one.relative / other.relative
    low, high = centred_interval(1.0, draws)
    return Estimate(estimate, max(0.0, estimate * low), estimate * high)


def verdict(found: Estimate) -> str:
    """What an interval of a ratio says: `better`, `worse` or `undecided`."""
    if found.high < 1:
        return "better"
    return "worse" if found.low > 1 else "undecided"
