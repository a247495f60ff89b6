"""Paired resamples: narrower than apart, and seldom wrong."""

import pytest
import torch

from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet, ratio, resampled_frechet, verdict
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
    together, apart = (ratio(found[name], found["near"], linear=wide) for name in ("far", "other"))
    assert together.value == pytest.approx(found["far"].estimate.value / found["near"].estimate.value)
    assert verdict(together) == "worse"
    assert verdict(ratio(found["near"], found["far"], linear=wide)) == "better"
    assert together.high - together.low < (apart.high - apart.low) / 3


def test_models_of_one_distribution_are_seldom_told_apart() -> None:
    """Two sets of samples of one distribution: of 40 intervals about 2 leave the ratio of 1 out."""
    distance = Frechet(moments(torch.randn(5000, 4)))
    wrong = 0
    for _ in range(40):
        noise = torch.randn(200, 4)
        one, other = (0.7 * noise + 0.3 * torch.randn(200, 4) + 0.5 for _ in range(2))
        draws = [resampled_frechet(distance, each, **RESAMPLES) for each in (one, other)]
        wrong += verdict(ratio(draws[0], draws[1], linear=False)) != "undecided"
    assert wrong <= 7


def test_verdicts() -> None:
    ends = {(0.8, 0.9): "better", (0.9, 1.1): "undecided", (1.1, 1.3): "worse"}
    assert {(low, high): verdict(Estimate((low + high) / 2, low, high)) for low, high in ends} == ends
