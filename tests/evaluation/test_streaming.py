"""Evaluation by batches: the numbers of all at once, with little of them in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from progdist import UserError
from progdist.data.shards import TensorShards
from progdist.data.sources import load_images
from progdist.evaluation import metrics
from progdist.evaluation.features import feature_space, features_of, write_features
from progdist.evaluation.generate import noise_in_batches
from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.metrics import quality
from progdist.evaluation.summary import join, summarize
from progdist.recipes.files import read_recipe
from progdist.runs.run import open_run
from support.commands import SilentCallback
from support.recipe_effects import untrained_of


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 28, 28)])
@pytest.mark.parametrize(("count", "batch"), [(100, 7), (256, 64), (33, 100)])
def test_noise_in_batches_is_that_of_one_draw(shape: tuple[int, ...], count: int, batch: int) -> None:
    parts = list(noise_in_batches(count, shape, batch, torch.Generator().manual_seed(3)))
    assert {len(part) for part in parts[:-1]} <= {batch}
    assert torch.equal(torch.cat(parts), torch.randn(count, *shape, generator=torch.Generator().manual_seed(3)))


def test_batches_give_the_numbers_of_all_at_once() -> None:
    images, labels = load_images("digits").sample(1797, 0)
    spaces = [feature_space(name, (1, 8, 8)) for name in ("digits", "pixels")]
    made = images[:640] + 0.3 * torch.randn(640, 1, 8, 8)
    parts = zip(made.split(100), labels[:640].split(100), images[:640].split(100), strict=True)
    summary = join(summarize(spaces, x, y, reference=truth, keep=2) for x, y, truth in parts)
    assert summary.rmse == pytest.approx(float((made.clamp(-1, 1) - images[:640]).square().mean().sqrt()), rel=1e-5)
    assert summary.images.shape == (14, 1, 8, 8)
    for space in spaces:
        data = space(images[640:])
        ours = quality(space, data, summary, resamples=5)
        theirs = quality(space, data, summarize([space], made, labels[:640]), resamples=5)
        assert ours.agreement == theirs.agreement
        for name in ("frechet", "frechet_low", "frechet_high", "kernel"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4)


def test_a_wide_space_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interval is not resampled, agrees with the bootstrap's, and the record says which it is."""
    space = feature_space("pixels", (1, 8, 8))
    images, _ = load_images("digits").sample(1797, 0)
    samples = images[:700] + 0.2 * torch.randn(700, 1, 8, 8)
    narrow = quality(space, space(images[700:]), summarize([space], samples), resamples=100)
    for module in (metrics, frechet):
        monkeypatch.setattr(module, "WIDE", 32)
    measured: list[int] = []
    plain = Frechet.__call__
    monkeypatch.setattr(Frechet, "__call__", lambda self, moments: measured.append(1) or plain(self, moments))
    wide = quality(space, space(images[700:]), summarize([space], samples), resamples=100)
    assert len(measured) == 4  # the distance once, and once more with both halves for its bias
    assert (narrow.interval, wide.interval) == ("bootstrap", "infinitesimal jackknife")
    assert narrow.frechet == wide.frechet
    widths = [one.frechet_high - one.frechet_low for one in (narrow, wide)]
    assert widths[1] == pytest.approx(widths[0], rel=0.35)


def test_data_features_are_computed_once_and_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images("digits")
    space, chosen = feature_space("digits", (1, 8, 8)), images.chosen(1500, 0)
    for process in (0, 1):
        write_features([space], images, chosen, tmp_path, process, 2)
    shards = TensorShards(tmp_path / "digits", 1500, 512)
    assert torch.equal(shards.read(range(1500)), features_of(space, images, chosen))
    assert torch.equal(shards.read(range(500, 1100)), features_of(space, images, chosen)[500:1100])
    monkeypatch.setattr(type(images), "at", lambda self, indices: pytest.fail("read again"))
    write_features([space], images, chosen, tmp_path, 0, 1)


def test_images_are_dropped_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path) -> None:
    """At no time does an evaluation hold more images than two batches, however many samples it makes."""
    recipe = read_recipe(str(tiny_recipe), ["evaluate.samples=512", "evaluate.batch=32", "evaluate.features=[pixels]"])
    run = open_run(recipe, tmp_path / "run", SilentCallback())
    run.prepare()
    made: list[Tensor] = []
    sizes: list[int] = []

    def sampled(model: object, noise: Tensor, *rest: object, **options: object) -> Tensor:
        sizes.append(len(noise))
        made.append(noise)
        return noise

    monkeypatch.setattr("progdist.runs.evaluator.sample_in_batches", sampled)
    evaluator = run.evaluator
    summaries = evaluator.samples(untrained_of(recipe), 4)
    assert sizes == [32] * 16
    assert sum(len(part.images) for part in summaries) == 64  # what the grid shows
    assert len(join(summaries)) == 512


def test_memory_does_not_grow_with_the_images_of_the_data(tmp_path: Path) -> None:
    """Features of 3,000 images of 64x64x3 bytes, 36 MiB: arrays of numpy stay below one and a half times as many."""
    np.savez(tmp_path / "a.npz", images=np.zeros((3000, 64, 64, 3), np.uint8))
    images = load_images(f"npz:{tmp_path}/a.npz")
    space = feature_space("pixels", images.shape)
    tracemalloc.start()
    try:
        features_of(space, images, images.chosen(3000, 0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        join([])
