"""The row of training images: what the data hold, with class or caption, whatever the kind of source."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.runs.folder import RunFolder
from progdist.runs.pages.slides import training_images
from progdist.runs.training_images import write_training_images
from support.commands import succeeds
from support.pictures import bytes_of, encoded, every_source

COLOURS = [(25 * number, 200 - 20 * number, 9) for number in range(10)]


def shown(image: str) -> Any:  # noqa: ANN401
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.partition("base64,")[2]))).convert("RGB"))


def test_they_are_the_data_of_every_source_with_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [encoded(Image.new("RGB", (6, 4), colour), "png") for colour in COLOURS]
    chosen = torch.randperm(10, generator=torch.Generator().manual_seed(3))[:8].sort().values.tolist()
    for kind, source in every_source(tmp_path, files).items():
        folder = RunFolder(tmp_path / kind)
        write_training_images(folder, load_images(source), 3)
        row = training_images(folder)
        assert (row["width"], row["height"], len(row["images"])) == (6, 4, 8)
        for (image, name), index in zip(row["images"], chosen, strict=True):
            assert name == ("word" if kind == "captions" else "")
            np.testing.assert_array_equal(shown(image)[0, 0], COLOURS[index])


def test_classes_are_named_and_fewer_images_are_all(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (4, 4), 50 * number).save(tmp_path / "data" / name / "a.png")
    write_training_images(RunFolder(tmp_path), load_images(f"folder:{tmp_path}/data"), 0)
    row = training_images(RunFolder(tmp_path))["images"]
    assert [(name, int(shown(image)[0, 0, 0])) for image, name in row] == [("ant", 0), ("bee", 50), ("cow", 100)]


def test_they_are_written_anew_where_the_data_are_others(tmp_path: Path) -> None:
    times = []
    for level in (10, 10, 20):
        np.savez(tmp_path / "a.npz", images=np.full((3, 4, 4), level, np.uint8))
        write_training_images(RunFolder(tmp_path), load_images(f"npz:{tmp_path}/a.npz"), 0)
        times.append(RunFolder(tmp_path).training_images().stat().st_mtime_ns)
        assert int(shown(training_images(RunFolder(tmp_path))["images"][0][0])[0, 0, 0]) == level
    assert times[0] == times[1] < times[2]


def test_large_images_are_reduced(tmp_path: Path) -> None:
    gradient = torch.linspace(-1, 1, 1024).expand(3, 512, 1024)
    write_training_images(RunFolder(tmp_path), Images("large", 2, lambda index: gradient, None), 0)
    row = training_images(RunFolder(tmp_path))
    assert (row["width"], row["height"]) == (192, 96)
    assert (tmp_path / "samples" / "data.png").stat().st_size < 200_000
    assert np.abs(shown(row["images"][1][0])[50, :, 0] - np.linspace(0, 255, 192)).max() < 8


def test_a_run_without_them_has_no_row(tmp_path: Path) -> None:
    assert training_images(RunFolder(tmp_path)) == {}


@pytest.mark.slow
def test_a_run_says_what_it_converts_and_shows_the_images_first(tiny_recipe: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        place = tmp_path / "data" / ("cats", "dogs & <b>")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(place / f"{number:02}.png")
    out, source = tmp_path / "run", f"folder:{tmp_path}/data"
    changes = (f"data.source={source}", "data.background=black", "evaluate.features=[pixels]", "evaluate.samples=16")
    printed = succeeds("run", tiny_recipe, "--out", out, *(word for each in changes for word in ("--set", each))).output
    assert f"{source}: 24 of 24 images have transparency: they are composed on black" in printed.replace("\n", " ")
    page, row = (out / "report.html").read_text(), training_images(RunFolder(out))
    images = load_images(source, background="black")
    for (image, name), index in zip(row["images"], images.chosen(8, 0).tolist(), strict=True):
        np.testing.assert_array_equal(shown(image), bytes_of(images[index][0]))
        assert name == ("cats", "dogs & <b>")[int(index >= 12)]
        assert image in page
    assert "dogs &amp; &lt;b&gt;" in page and '<b>"' not in page
    assert page.index('id="training"') < page.index("<h2>")
