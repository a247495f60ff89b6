"""Every data source, and the mistakes in naming one."""

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from progdist import UserError
from progdist.data.images import to_uint8
from progdist.data.sources import load_images
from progdist.recipes.schema import Data
from progdist.runs.checks import open_images


def idx(path: Path, array: NDArray[np.uint8]) -> None:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)


def test_digits_are_scikit_learns() -> None:
    images = load_images("digits")
    known = load_digits()
    assert len(images) == 1797
    assert images.shape == (1, 8, 8)
    assert images.classes == tuple("0123456789")
    for index in (0, 500, 1796):
        x, label = images[index]
        np.testing.assert_allclose((x[0].numpy() + 1) * 8, known.images[index])  # pyright: ignore
        assert label == known.target[index]  # pyright: ignore


@pytest.mark.parametrize("suffix", ["-idx3-ubyte", "-idx3-ubyte.gz"])
def test_idx_plain_and_gzipped(tmp_path: Path, pixels: NDArray[np.uint8], suffix: str) -> None:
    idx(tmp_path / f"train-images{suffix}", pixels)
    idx(tmp_path / f"train-labels{suffix.replace('3', '1')}", np.arange(6, dtype=np.uint8))
    images = load_images(f"idx:{tmp_path}")
    assert len(images) == 6
    assert [label for _, label in images] == list(range(6))
    np.testing.assert_array_equal(to_uint8(images[4][0][None])[0, :, :, 0], pixels[4])


def test_folders_of_classes_and_flat(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for number, name in enumerate(["ant", "bee", "bee", "cow", "cow", "cow"]):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(tmp_path / "classes" / name / f"{number}.png")
    images = load_images(f"folder:{tmp_path}/classes")
    assert images.classes == ("ant", "bee", "cow")
    assert [images[index][1] for index in range(6)] == [0, 1, 1, 2, 2, 2]
    flat = load_images(f"folder:{tmp_path}/classes/cow")
    assert (len(flat), flat.classes, flat.labels) == (3, (), None)
    np.testing.assert_array_equal(to_uint8(flat[0][0][None])[0, :, :, 0], pixels[3])


def test_npz_bytes_and_floats(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    np.savez(tmp_path / "bytes.npz", images=pixels[..., None].repeat(3, 3), labels=np.arange(6) % 2)
    images = load_images(f"npz:{tmp_path}/bytes.npz")
    assert images.shape == (3, 12, 12)
    assert images.classes == ("0", "1")
    floats = np.random.default_rng(0).uniform(-1, 1, (6, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "floats.npz", images=floats)
    np.testing.assert_array_equal(load_images(f"npz:{tmp_path}/floats.npz")[2][0][0].numpy(), floats[2])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.001), (-1.04, 0.9), (-1.02, 1.05), (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_a_resampling_overshot_are_clipped_and_told(
    tmp_path: Path, low: float, high: float, dtype: type
) -> None:
    floats = np.linspace(-0.9, 0.9, 6 * 16).reshape(6, 4, 4).astype(dtype)
    floats[2, 0, 0], floats[4, 1, 1] = low + 0.0005, high - 0.0005
    np.savez(tmp_path / "a.npz", images=floats, labels=np.arange(6))
    images = load_images(f"npz:{tmp_path}/a.npz", notify=lambda line: None)
    for index in range(6):
        expected = np.minimum(np.maximum(floats[index].astype(np.float32), -1), 1)
        np.testing.assert_array_equal(images[index][0][0].numpy(), expected)
    beyond = int((floats < -1).sum() + (floats > 1).sum())
    assert len(images.notes) == (beyond > 0)
    assert beyond == 0 or f"{beyond} of 96 values are beyond [-1, 1]" in images.notes[0]


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (-1, 1.2, "scale them"),
        (-1.2, 1, "scale them"),
        (-0.02, 1.02, "2 * images - 1"),
        (-0.01, 0.98, "2 * images - 1"),
    ],
)
def test_floats_beyond_an_overshoot_and_of_an_overshot_0_to_1_are_refused(
    tmp_path: Path, low: float, high: float, remedy: str
) -> None:
    np.savez(tmp_path / "a.npz", images=np.linspace(low, high, 64).reshape(4, 4, 4))
    with pytest.raises(UserError, match=re.escape(remedy)):
        load_images(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "digits, folder:PATH"),
        ("folder:", "unknown"),
        ("folder:/no/such/place", "not a folder"),
        ("folder:{tmp}/empty", "no images"),
        ("folder:{tmp}/mixed", "next to class folders"),
        ("folder:{tmp}/text", "cannot be read as an image"),
        ("idx:{tmp}/empty", "dataset-fashion-mnist"),
        ("idx:{tmp}/short", "fetch the file again"),
        ("idx:{tmp}/labels", "as many labels as images"),
        ("cifar:{tmp}/empty", "data_batch_1"),
        ("cifar:{tmp}/python", "0 labels"),
        ("npz:{tmp}/none.npz", "cannot be read"),
        ("npz:{tmp}/pickled.npz", "cannot be read"),
        ("npz:{tmp}/bright.npz", "floats in [-1, 1]: give images / 127.5 - 1"),
        ("npz:{tmp}/unit.npz", "from 0 to 1, expected floats in [-1, 1]: give 2 * images - 1"),
        ("npz:{tmp}/bytes.npz", "from 0 to 255, expected floats in [-1, 1]: give images / 127.5 - 1"),
        ("npz:{tmp}/half.npz", "float16 from 0 to 1, expected floats in [-1, 1]: give 2 * images - 1"),
        ("npz:{tmp}/wide.npz", "from -3 to 3, expected floats in [-1, 1]: scale them"),
        ("npz:{tmp}/infinite.npz", "image 5 has values that are not finite"),
        ("npz:{tmp}/long.npz", "images are int64, expected uint8"),
        ("npz:{tmp}/mask.npz", "images hold only 0 and 1, expected uint8 from 0 to 255: multiply them by 255"),
        ("idx:{tmp}/mask", "images hold only 0 and 1, expected uint8 from 0 to 255"),
        ("{tmp}/text", "use folder:{tmp}/text"),
        ("npz:{tmp}/shape.npz", "expected (N, H, W)"),
        ("npz:{tmp}/negative.npz", "negative"),
        ("npz:{tmp}/cut.npz", "cannot be read"),
        ("npz:{tmp}/array.npy", "cannot be read"),
        ("npz:{tmp}/words.npz", "words.npz: image 2: add the labels"),
        ("npz:{tmp}/nan.npz", "image 1 has values that are not finite"),
        ("idx:{tmp}/zipped", "fetch the file again"),
        ("npz:{tmp}/gap.npz", "is beyond 1,048,576 classes"),
        ("wds:pipe:touch {tmp}/made", "matches no files"),
        ("hub:somebody/something", "hub"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, pixels: NDArray[np.uint8], source: str, message: str) -> None:
    for name in ("empty", "mixed/a", "text", "short", "labels", "python", "zipped", "mask"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mixed/1.png", "mixed/a/2.png"):
        Image.fromarray(pixels[0]).save(tmp_path / name)
    (tmp_path / "text" / "1.png").write_text("no picture")
    (tmp_path / "python" / "data_batch_1").write_bytes(b"\x80\x02.")
    idx(tmp_path / "short" / "train-images-idx3-ubyte", pixels)
    (tmp_path / "short" / "train-images-idx3-ubyte").write_bytes(
        (tmp_path / "short" / "train-images-idx3-ubyte").read_bytes()[:-5]
    )
    idx(tmp_path / "labels" / "train-images-idx3-ubyte", pixels)
    idx(tmp_path / "labels" / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    np.savez(tmp_path / "bright.npz", images=np.full((2, 4, 4), 2.0))
    ramp = np.linspace(0, 1, 96).reshape(6, 4, 4)
    np.savez(tmp_path / "unit.npz", images=ramp.astype(np.float32))
    np.savez(tmp_path / "bytes.npz", images=255 * ramp)
    np.savez(tmp_path / "half.npz", images=ramp.astype(np.float16))
    np.savez(tmp_path / "wide.npz", images=6 * ramp - 3)
    np.savez(tmp_path / "infinite.npz", images=np.where(ramp == 1, np.inf, ramp))
    np.savez(tmp_path / "long.npz", images=pixels.astype(np.int64))
    np.savez(tmp_path / "mask.npz", images=pixels // 128)
    idx(tmp_path / "mask" / "train-images-idx3-ubyte", pixels // 128)
    np.savez(tmp_path / "shape.npz", images=np.zeros((2, 4, 4, 5), np.uint8))
    np.savez(tmp_path / "negative.npz", images=pixels, labels=np.array([0, 1, -1, 0, 0, 0]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "negative.npz").read_bytes()[:300])
    np.save(tmp_path / "array.npy", pixels)
    np.savez(tmp_path / "gap.npz", images=pixels, labels=np.array([0, 1, 30_000_000, 0, 0, 0]))
    np.savez(tmp_path / "words.npz", images=pixels, labels=np.array(["a", "b", "", "d", "e", "f"]))
    np.savez(tmp_path / "nan.npz", images=np.array([0.5, np.nan]).repeat(16).reshape(2, 4, 4))
    (tmp_path / "zipped" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:15] + b"junk" * 9)
    with pytest.raises(UserError) as caught:
        load_images(source.format(tmp=tmp_path))
    assert message.format(tmp=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()  # a source is data: nothing in its name is carried out


def test_folders_behind_links_count_and_hidden_ones_do_not(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for folder in ("elsewhere/cats", "data/dogs", "data/.cache", "data/dogs/.thumbnails"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels[0]).save(tmp_path / folder / "a.png")
    Image.fromarray(pixels[0]).save(tmp_path / "data" / "dogs" / "._b.png")
    (tmp_path / "data" / "cats").symlink_to(tmp_path / "elsewhere" / "cats", target_is_directory=True)
    (tmp_path / "data" / "dogs" / "round").symlink_to(tmp_path / "data", target_is_directory=True)  # a circle
    images = load_images(f"folder:{tmp_path / 'data'}")
    assert images.classes == ("cats", "dogs")
    assert len(images) == 2


@pytest.mark.parametrize("dtype", [">f4", "float64", "longdouble", "float16"])
def test_floats_of_any_kind_are_read(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4), -0.5).astype(dtype))
    assert load_images(f"npz:{tmp_path}/a.npz")[1][0].eq(-0.5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0, expected a whole number of pixels"),
        ({"size": -3}, "size is -3"),
        ({"size": 8.0}, "size is 8.0"),
        ({"size": True}, "size is True"),
        ({"size": (8, 8)}, "size is (8, 8)"),
        ({"channels": 2}, "channels is 2, expected 1 (grey), 3 (RGB) or None"),
        ({"channels": "3"}, "channels is '3'"),
        ({"channels": True}, "channels is True"),
        ({"channels": [3]}, "channels is [3]"),
        ({"resample": "foo"}, "resample is 'foo', expected area or bilinear"),
        ({"resample": None}, "resample is None"),
        ({"image_column": 3}, "image_column is 3, expected the name of a column"),
        ({"caption_column": ["a"]}, "caption_column is ['a']"),
        ({"crops": 0}, "crops is 0, expected a whole number, at least 1"),
        ({"crops": 2}, "crops requires size"),
        ({"seed": -1}, "seed is -1, expected a whole number, at least 0"),
        ({"source": Path("photos")}, "source is PosixPath('photos'), expected text such as \"folder:photos\""),
        ({"source": None}, "source is None"),
        ({"source": b"digits"}, "source is b'digits'"),
        ({"source": ["digits"]}, "source is ['digits']"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_images(**{"source": "digits", **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_call_gives_is_what_a_recipe_trains_on(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = draw.integers(0, 256, (12, 20, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    how: dict[str, Any] = {"size": 8, "channels": 1, "resample": "bilinear", "background": "black", "crops": 2}
    trained = open_images(Data(source=f"folder:{tmp_path}", **how), seed=5)
    given = load_images(f"folder:{tmp_path}", **how, seed=5)
    assert (len(given), given.shape, given.classes) == (12, (1, 8, 8), ("ant", "bee"))
    for index in range(12):
        assert torch.equal(given[index][0], trained[index][0])
        assert given[index][1] == trained[index][1] == index // 6


def test_the_call_says_what_it_converts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    load_images(f"folder:{tmp_path}")
    assert "1 of 1 images have transparency" in caplog.text
