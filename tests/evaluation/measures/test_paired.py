"""Paired resamples: narrower than apart, and seldom wrong."""

from math import inf

import pytest
import torch

from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet, Resampled, ratio, resampled_frechet, verdict
from progdist.evaluation.measures.moments import moments

RESAMPLES = {"resamples": 40, "seed": 0}


@pytest.mark.parametrize("wide", [False, True])
def test_what_belongs_together_is_told_apart(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is a little worse on the same noise is seen to be; with other noise these samples cannot tell."""
    monkeypatch.setattr(frechet, "WIDE", 2 if wide else 1024)
    distance, noise = Frechet(moments(torch.randn(5000, 6))), torch.randn(2, 600, 6)
    near, far, other = 0.8 * noise[0], 0.78 * noise[0] + 0.01, 0.78 * noise[1] + 0.01
    found = {
        name: resampled_frechet(distance, x, **RESAMPLES)
        for name, x in (("near", near), ("far", far), ("other", other))
    }
    together, apart = (ratio(found[name], found["near"]) for name in ("far", "other"))
    assert together.value == pytest.approx(found["far"].estimate.value / found["near"].estimate.value)
    assert verdict(together) == "worse"
    assert verdict(ratio(found["near"], found["far"])) == "better"
    assert together.high - together.low < (apart.high - apart.low) / 3


@pytest.mark.slow
@pytest.mark.parametrize(("width", "deviation", "mean"), [(16, 0.7, 0.0), (16, 0.85, 0.03)])
def test_models_of_one_distribution_are_seldom_told_apart(width: int, deviation: float, mean: float) -> None:
    """Two sets of samples of one distribution, one in twenty is told apart at most.

    Of 150 pairs 7 are expected of exact intervals, and fewer where the distances have much bias, which widens them.
    Quotients of draws that are not centred tell 10 and 15 of these apart.
    """
    draw = torch.Generator().manual_seed(0)
    distance = Frechet(moments(torch.randn(5000, width, generator=draw)))
    wrong = 0
    for trial in range(150):
        pair = deviation * torch.randn(2, 320, width, generator=draw) + mean
        one, other = (resampled_frechet(distance, each, resamples=60, seed=trial) for each in pair)
        wrong += verdict(ratio(one, other)) != "undecided"
    assert wrong <= 7


def test_the_ratios_interval_is_what_pairs_vary_by() -> None:
    """The delta method by hand: the relative deviations of two independent distances add in squares."""
    draw = torch.Generator().manual_seed(0)
    distance = Frechet(moments(torch.randn(20_000, 3, generator=draw)))

    def resampled() -> tuple[Resampled, float]:
        found = resampled_frechet(distance, torch.randn(400, 3, generator=draw) + 0.7, resamples=60, seed=0)
        return found, found.estimate.value

    found, values = zip(*(resampled() for _ in range(80)), strict=True)
    relative = float(torch.tensor(values).std()) / (sum(values) / len(values))
    estimates = [ratio(one, other) for one, other in zip(found[::2], found[1::2], strict=True)]
    widths = [(each.high - each.low) / each.value for each in estimates]
    assert sum(widths) / len(widths) == pytest.approx(2 * 1.96 * 2**0.5 * relative, rel=0.3)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [(1.0, 1e-9, 1e9), (1e-9, 1.0, 1e-9), (1.0, 1e-320, inf), (1.0, 0.0, inf), (0.0, 1.0, 0.0), (0.0, 0.0, inf),
     (-1e-12, 1.0, 0.0), (1.0, -1e-12, inf), (1e-12, 1e-12, 1.0)],
)  # fmt: skip
def test_distances_of_nearly_nothing_decide_nothing(one: float, other: float, value: float) -> None:
    """Beside draws that differ by 0.1, a distance of nearly 0 has a ratio that may be anything."""
    draws = 0.1 * torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ratio(*(Resampled(Estimate(v, 0.0, 1.0), v + each) for v, each in zip((one, other), draws, strict=True)))
    assert found.value == pytest.approx(value)
    assert (found.low, found.high, verdict(found)) == (0.0, inf, "undecided")


def test_equal_samples_have_a_ratio_of_one() -> None:
    distance, x = Frechet(moments(torch.randn(100, 2))), 0.5 * torch.randn(50, 2)
    found = resampled_frechet(distance, x, **RESAMPLES)
    assert ratio(found, found) == Estimate(1.0, 1.0, 1.0)


def test_verdicts() -> None:
    ends = {(0.8, 0.9): "better", (0.9, 1.1): "undecided", (1.1, 1.3): "worse"}
    assert {(low, high): verdict(Estimate((low + high) / 2, low, high)) for low, high in ends} == ends
