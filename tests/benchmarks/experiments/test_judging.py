"""Judging: copies, collapse and what was held out are seen, and data are split as is said."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import judging
from judging import Judge, Setting, Space, judge, read_rows, resizing_space, split, table
from progdist import Denoiser, UserError
from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.models.model import Model

Build = Callable[..., Denoiser]


def test_a_fifth_of_every_class_is_held_out(tmp_path: Path) -> None:
    """Both parts together are the data, bit for bit; the seed says which, and the same one says the same."""
    data, parts = (
        load_images("digits"),
        [load_images(f"npz:{path}") for path in split("digits", tmp_path / "a", seed=0)],
    )
    assert data.labels is not None
    pixels = [part.at(torch.arange(len(part))) for part in parts]
    counts = [labels.bincount() for _, labels in pixels]
    assert (counts[1] / data.labels.bincount() - 0.2).abs().max() < 0.01
    joined, whole = torch.cat([images for images, _ in pixels]), data.at(torch.arange(1797))[0]
    order = [np.lexsort(each.flatten(1).numpy().T) for each in (joined, whole)]
    torch.testing.assert_close(joined[order[0]], whole[order[1]], rtol=0, atol=0)
    again, other = (split("digits", tmp_path / name, seed)[1] for name, seed in (("b", 0), ("c", 1)))
    assert np.array_equal(np.load(again)["images"], np.load(tmp_path / "a" / "held_out.npz")["images"])
    assert not np.array_equal(np.load(other)["images"], np.load(again)["images"])
    with pytest.raises(UserError, match="leaves one part empty"):
        split("digits", tmp_path / "d", 0, share=0.0001)


def test_bytes_stay_bytes_and_data_without_classes_have_none(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "all.npz", images=images)
    paths = split(f"npz:{tmp_path / 'all.npz'}", tmp_path / "parts", seed=0)
    kept = [np.load(path) for path in paths]
    assert [each["images"].shape[0] for each in kept] == [40, 10]
    assert {each["images"].dtype for each in kept} == {np.dtype(np.uint8)}
    assert all("labels" not in each for each in kept)


@pytest.fixture(scope="module")
def parts() -> tuple[Images, Images, Tensor]:
    """1,200 training and 300 held-out digits, and 297 that are neither."""
    data, order = load_images("digits"), torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return data.subset(order[:1200]), data.subset(order[1200:1500]), data.at(order[1500:])[0]


@pytest.mark.parametrize("name", judging.FEATURES)
def test_memory_of_the_training_images_is_seen(parts: tuple[Images, Images, Tensor], name: str) -> None:
    """New images are as near as held-out ones, and nearest to training images as often as these are many."""
    training, held_out, new = parts
    space = Space.of(resizing_space(name, (1, 8, 8)), training, held_out)
    copies = training.at(torch.arange(300))[0] + 0.02 * torch.randn(300, 1, 8, 8)
    fresh, memory = (space.measures(space.space(images), seed=0) for images in (new, copies))
    assert fresh["expected"] == memory["expected"] == pytest.approx(0.8)
    assert fresh["training_share"] == pytest.approx(0.8, abs=0.07)
    assert memory["training_share"] > 0.99
    assert fresh["nearest"] == pytest.approx(fresh["nearest_of_held_out"], rel=0.1)
    assert fresh["nearest_of_training"] == pytest.approx(fresh["nearest_of_held_out"], rel=0.1)
    assert memory["nearest"] < 0.3 * fresh["nearest"]
    ratios = [each["frechet"] / each["frechet_held_out"] for each in (memory, fresh)]
    assert ratios[0] < ratios[1]


def test_rows_of_models_from_one_noise(tiny_model: Build, parts: tuple[Images, Images, Tensor], tmp_path: Path) -> None:
    """A teacher against itself is 1 and 0; a student's row is what its samples give; known rows are not made again."""
    teacher, student = tiny_model(), tiny_model(classes=0)
    training, held_out, _ = parts
    setting = Setting(training, held_out, samples=64, features=("digits", "pixels"), seed=3, batch=40)
    out, entries = tmp_path / "rows.jsonl", [("same", teacher, 4), ("student", student, 2)]
    first, same, other = judge(("teacher", teacher, 4), entries, setting, out, notify=lambda text: None)
    assert same["rmse"] == 0
    assert [first["spaces"], same["spaces"]] == [first["spaces"]] * 2
    assert {row["spaces"]["digits"]["frechet_ratio"] for row in (first, same)} == {1.0}
    options = (SamplingOptions(steps, 64, seed=3) for steps in (4, 2))
    expected, made = (
        generate_images(Model(each), option, print)[0] for each, option in zip((teacher, student), options, strict=True)
    )
    difference = made.clamp(-1, 1) - expected.clamp(-1, 1)
    assert other["rmse"] == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-4)
    found = Judge(("teacher", teacher, 4), setting).measured(made)
    assert other["spaces"]["pixels"] == pytest.approx(other["spaces"]["pixels"] | found[1], rel=1e-4)
    assert [row["seconds_per_image"] > 0 for row in read_rows([out])] == [True] * 3
    lines = out.read_text()
    assert judge(("teacher", teacher, 4), entries, setting, out) == [first, same, other]
    assert out.read_text() == lines


def test_samples_are_seen_at_the_size_of_the_classifier() -> None:
    images = torch.rand(3, 1, 14, 14)
    space = resizing_space("fashion-mnist", (1, 14, 14))
    double = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(space(images), resizing_space("fashion-mnist", (1, 28, 28))(double))


def test_a_table_has_mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        spaces = {name: {"frechet": value, "frechet_ratio": value / 2, "nearest": 0.5} for name in ("digits", "pixels")}
        row = {"name": "a", "steps": 4, "seed": seed, "samples": 9, "rmse": 0.1, "seconds_per_image": 0.002}
        (tmp_path / f"{seed}.jsonl").write_text(json.dumps(row | {"spaces": spaces}))
    tables = table(read_rows(sorted(tmp_path.glob("*.jsonl")))).split("\n\n")
    assert [each.split(" | ")[0] for each in tables] == ["| digits", "| pixels"]
    assert "| a | 4 | 3 | 1.500 ± 1.323 | 3.000 ± 2.646 | 0.500 ± 0.000 | 0.100 ± 0.000 | 2.000 ± 0.000 |" in tables[0]
