"""Every data source, and the mistakes in naming one."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from progdist import UserError
from progdist.data.images import to_uint8
from progdist.data.sources import load_images


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "digits, folder:PATH"),
        ("folder:", "unknown"),
        ("folder:/no/such/place", "no folder"),
        ("folder:{tmp}/empty", "no images"),
        ("folder:{tmp}/mixed", "beside class folders"),
        ("folder:{tmp}/text", "cannot be read as an image"),
        ("idx:{tmp}/empty", "dataset-fashion-mnist"),
        ("idx:{tmp}/short", "fetch the file again"),
        ("idx:{tmp}/labels", "equally many"),
        ("cifar:{tmp}/empty", "data_batch_1"),
        ("cifar:{tmp}/python", "0 labels"),
        ("npz:{tmp}/none.npz", "cannot be read"),
        ("npz:{tmp}/pickled.npz", "cannot be read"),
        ("npz:{tmp}/bright.npz", "floats in"),
        ("npz:{tmp}/shape.npz", "expected (N, H, W)"),
        ("npz:{tmp}/negative.npz", "negative"),
        ("npz:{tmp}/cut.npz", "cannot be read"),
        ("npz:{tmp}/array.npy", "cannot be read"),
        ("npz:{tmp}/words.npz", "whole numbers"),
        ("npz:{tmp}/nan.npz", "floats in"),
        ("idx:{tmp}/zipped", "fetch the file again"),
        ("npz:{tmp}/gap.npz", "is beyond 1,048,576 classes"),
        ("wds:pipe:touch {tmp}/made", "matches no files"),
        ("hub:somebody/something", "hub"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, pixels: NDArray[np.uint8], source: str, message: str) -> None:
    for name in ("empty", "mixed/a", "text", "short", "labels", "python", "zipped"):
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
    np.savez(tmp_path / "shape.npz", images=np.zeros((2, 4, 4, 5), np.uint8))
    np.savez(tmp_path / "negative.npz", images=pixels, labels=np.array([0, 1, -1, 0, 0, 0]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "negative.npz").read_bytes()[:300])
    np.save(tmp_path / "array.npy", pixels)
    np.savez(tmp_path / "gap.npz", images=pixels, labels=np.array([0, 1, 30_000_000, 0, 0, 0]))
    np.savez(tmp_path / "words.npz", images=pixels, labels=np.array(list("abcdef")))
    np.savez(tmp_path / "nan.npz", images=np.full((2, 4, 4), np.nan))
    (tmp_path / "zipped" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:15] + b"junk" * 9)
    with pytest.raises(UserError) as caught:
        load_images(source.format(tmp=tmp_path))
    assert message in str(caught.value)
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
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4), 0.5).astype(dtype))
    assert load_images(f"npz:{tmp_path}/a.npz")[1][0].eq(0.5).all()
