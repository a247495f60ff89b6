"""The same numbers as other implementations on the same features; those of torch-fidelity and prdc are recorded."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from progdist.evaluation.measures.diversity import class_diversity
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.kernel import PrecomputedFeatures, kernel_distance
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.neighbors import (
    density_coverage,
    nearest_distance,
    neighbors,
    precision_recall,
    radii,
)
from progdist.evaluation.measures.scores import inception_score
from support.networks import feature_sets
from support.paths import REFERENCE

RECORDED = json.loads((REFERENCE / "metrics.json").read_text())

DATA, MADE, LOGITS = feature_sets()


def test_frechet_is_torchmetrics_scipy_and_torch_fidelity() -> None:
    ours = Frechet(moments(DATA))(moments(MADE))
    metric = FrechetInceptionDistance(PrecomputedFeatures(8)).set_dtype(torch.float64)
    metric.update(DATA.double(), real=True)
    metric.update(MADE.double(), real=False)
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)
    (m, c), (n, d) = ((x.double().mean(0), x.double().T.cov()) for x in (DATA, MADE))
    root = torch.from_numpy(np.real(sqrtm((c @ d).numpy())))  # as pytorch-fid, clean-fid and guided-diffusion have it
    assert ours == pytest.approx(float((m - n).square().sum() + (c + d - 2 * root).trace()), rel=1e-6)
    assert ours == pytest.approx(RECORDED["frechet_inception_distance"], rel=1e-6)


def test_frechet_of_fewer_samples_than_features_is_torchmetrics() -> None:
    few, more = torch.randn(30, 40), torch.randn(300, 40)
    metric = FrechetInceptionDistance(PrecomputedFeatures(40)).set_dtype(torch.float64)
    metric.update(more.double(), real=True)
    metric.update(few.double(), real=False)
    assert Frechet(moments(more))(moments(few)) == pytest.approx(float(metric.compute()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_is_torchmetrics_and_torch_fidelity() -> None:
    ours, _ = kernel_distance(DATA, MADE, seed=0)
    assert ours == pytest.approx(1000 * RECORDED["kernel_inception_distance_mean"], rel=1e-4)
    more, same = DATA.repeat(4, 1), MADE.repeat(4, 1)  # subsets of 1,000 of 1,600
    metric = KernelInceptionDistance(PrecomputedFeatures(8), subsets=20, subset_size=1000)
    metric.update(more, real=True)
    metric.update(same, real=False)
    mean, deviation = metric.compute()
    assert kernel_distance(more, same, seed=0)[0] == pytest.approx(1000 * float(mean), abs=1500 * float(deviation))


def test_inception_score_is_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    # what is recorded is of samples in their order
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    score = inception_score(LOGITS, seed=0)["inception_score"]
    assert score.value == pytest.approx(RECORDED["inception_score_mean"], rel=1e-6)
    p = LOGITS[:21].double().softmax(1)  # in ten parts, the last of three; torchmetrics makes seven
    parts = [p[number * 21 // 10 : (number + 1) * 21 // 10] for number in range(10)]
    scores = torch.stack([(part * (part / part.mean(0)).log()).sum(1).mean().exp() for part in parts])
    few = inception_score(LOGITS[:21], seed=0)["inception_score"]
    assert few.value == pytest.approx(float(scores.mean()), rel=1e-9)
    assert few.high - few.value == pytest.approx(1.96 * float(scores.std()) / 10**0.5, rel=1e-9)


def test_radii_are_scikit_learns() -> None:
    for k in (1, 3, 5):
        theirs = NearestNeighbors(n_neighbors=k + 1).fit(DATA.numpy()).kneighbors(DATA.numpy())[0][:, -1]
        torch.testing.assert_close(radii(DATA.double(), k), torch.from_numpy(theirs).double(), rtol=1e-5, atol=1e-6)


def test_nearest_distances_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples and of the data to themselves, whose first neighbour is each itself; also in blocks."""
    theirs, rows = NearestNeighbors(n_neighbors=2).fit(DATA.numpy()).kneighbors(MADE.numpy())
    own = NearestNeighbors(n_neighbors=2).fit(DATA.numpy()).kneighbors(DATA.numpy())[0][:, 1]
    monkeypatch.setattr("progdist.evaluation.measures.neighbors.BLOCK", 64)
    ours = nearest_distance(DATA, MADE, seed=0)
    assert ours["nearest_distance"].value == pytest.approx(float(np.median(theirs[:, 0])), rel=1e-5)
    assert ours["nearest_distance_of_data"].value == pytest.approx(float(np.median(own)), rel=1e-5)
    for k in (1, 2):
        apart, found = neighbors(MADE.double(), DATA.double(), k)
        np.testing.assert_array_equal(found, rows[:, k - 1])
        np.testing.assert_allclose(apart, theirs[:, k - 1], rtol=1e-5)


def test_class_diversity_is_discriminant_analysis() -> None:
    """The trace of scikit-learn's within-class covariance, which divides by the number of each class."""
    classes = torch.arange(400) % 3 % 2  # a third of them 1, of either set alike
    traces = [
        LinearDiscriminantAnalysis(store_covariance=True).fit(x.numpy(), classes.numpy()).covariance_.trace()
        for x in (MADE.double(), DATA.double())
    ]
    ours = class_diversity(DATA, MADE, classes, classes, seed=0)["class_diversity"].value
    assert ours == pytest.approx(traces[0] / traces[1], rel=2e-3)
    spreads = [[np.cov(x[classes == c].numpy().T).trace() for c in (0, 1)] for x in (MADE, DATA)]
    shares = np.array([(classes == c).float().mean() for c in (0, 1)])
    assert ours == pytest.approx((spreads[0] @ shares) / (spreads[1] @ shares), rel=1e-6)


def test_neighbors_are_torch_fidelity_and_prdc() -> None:
    ours = precision_recall(DATA, MADE, seed=0) | density_coverage(DATA, MADE, seed=0)
    for name, k in (("precision", 3), ("recall", 3), ("density", 5), ("coverage", 5)):
        assert ours[name].value == pytest.approx(RECORDED[f"{name}_k{k}"], rel=1e-6)
