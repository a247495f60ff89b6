"""Every source, the transform rules, and the mistakes in them."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from progdist import UserError
from progdist.data.formats import read_idx
from progdist.data.images import ImageTransform, to_uint8
from progdist.data.sources import load_images
from progdist.training.batches import Batches


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


def test_area_resampling_is_a_mean_of_the_centre_square(tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (8, 12), dtype=np.uint8)
    framed = ImageTransform(size=4)(Image.fromarray(wide))
    means = wide[:, 2:10].reshape(4, 2, 4, 2).mean((1, 3)) / 127.5 - 1
    np.testing.assert_allclose(framed[0].numpy(), means, atol=1 / 127)
    smooth = ImageTransform(size=4, resample="bilinear")(Image.fromarray(wide))
    assert not torch.equal(framed, smooth)
    assert ImageTransform(channels=3)(Image.fromarray(wide)).shape == (3, 8, 12)
    assert ImageTransform()(Image.fromarray(wide).convert("RGBA")).shape == (3, 8, 12)


@pytest.mark.parametrize("count", [100, 1797, 5000])
def test_spread_labels_have_the_datas_shares(count: int) -> None:
    images = load_images("digits")
    assert images.labels is not None
    shares = [
        labels.bincount(minlength=10) / len(labels) for labels in (images.labels, images.stratified_labels(count))
    ]
    torch.testing.assert_close(*shares, rtol=0, atol=0.011)
    assert len(images.stratified_labels(count)[:20].unique()) > 4


def test_cifars_binary_version(tmp_path: Path) -> None:
    """A label, then red, green and blue planes."""
    rng = np.random.default_rng(0)
    planes, labels = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), np.array([3, 0, 9, 1], np.uint8)
    for part in (1, 2):
        rows = range(2 * part - 2, 2 * part)
        content = b"".join(labels[row].tobytes() + planes[row].tobytes() for row in rows)
        (tmp_path / f"data_batch_{part}.bin").write_bytes(content)
    images = load_images(f"cifar:{tmp_path}")
    assert images.shape == (3, 32, 32)
    assert [images[row][1] for row in range(4)] == labels.tolist()
    np.testing.assert_allclose(images[2][0].numpy(), planes[2] / 127.5 - 1, atol=1e-6)
    (tmp_path / "data_batch_2.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="3073"):
        load_images(f"cifar:{tmp_path}")


def python_2_batch(planes: NDArray[np.uint8], labels: list[int]) -> bytes:
    """What Python 2 wrote: protocol 2, byte strings as (SHORT_)BINSTRING, numbers in batches of a list."""
    data = planes.tobytes()
    words = b"".join(b"K" + bytes([label]) for label in labels)
    rebuilt = b"cnumpy.core.multiarray\n_reconstruct\nq\x05U\x01bq\x06"
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5"
        + (b"U\x06labelsq\x03]q\x04(" + words + b"e")
        + (b"U\x04data" + rebuilt + b"T" + len(data).to_bytes(4, "little") + data)
        + b"U\x09filenames]q\x07(U\x05a.pngeu."
    )


@pytest.mark.parametrize("writer", ["python 2", "python 3"])
def test_cifars_python_version(tmp_path: Path, writer: str) -> None:
    rng = np.random.default_rng(0)
    planes, labels = rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8), [3, 0, 9, 1, 200]
    content = {
        "python 2": python_2_batch(planes, labels),
        "python 3": pickle.dumps({b"labels": labels, b"data": planes.reshape(5, -1), b"filenames": []}, protocol=2),
    }[writer]
    (tmp_path / "data_batch_1").write_bytes(content)
    images = load_images(f"cifar:{tmp_path}")
    assert [images[row][1] for row in range(5)] == labels
    np.testing.assert_allclose(images[2][0].numpy(), planes[2] / 127.5 - 1, atol=1e-6)
    (tmp_path / "data_batch_1").write_bytes(content[:-4000])
    with pytest.raises(UserError, match="fetch"):
        load_images(f"cifar:{tmp_path}")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"labels": [1], b"data": Harmful()}, protocol=2))
    with pytest.raises(UserError, match="fetch"):
        load_images(f"cifar:{tmp_path}")
    assert not (tmp_path / "harm").exists()


def test_sampling_is_without_repeats() -> None:
    images = load_images("digits")
    x, labels = images.sample(1797, seed=3)
    assert len(x.flatten(1).unique(dim=0)) > 1700
    assert torch.equal(labels, torch.from_numpy(load_digits().target))  # pyright: ignore
    assert not torch.equal(images.sample(50, seed=1)[0], images.sample(50, seed=2)[0])


@pytest.mark.parametrize(
    ("source", "says"),
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
        ("hub:somebody/something", "hub"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, pixels: NDArray[np.uint8], source: str, says: str) -> None:
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
    np.savez(tmp_path / "words.npz", images=pixels, labels=np.array(list("abcdef")))
    np.savez(tmp_path / "nan.npz", images=np.full((2, 4, 4), np.nan))
    (tmp_path / "zipped" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:15] + b"junk" * 9)
    with pytest.raises(UserError) as caught:
        load_images(source.format(tmp=tmp_path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sixteen_bits_and_narrow_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]] * 4, np.uint16)).save(tmp_path / "1.png")
    x = load_images(f"folder:{tmp_path}")[0][0]
    assert x.shape == (1, 4, 3)
    torch.testing.assert_close((x[0, 0] + 1) * 127.5, torch.tensor([0.0, 100, 255]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_line_from_any_process(tmp_path: Path, workers: int) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    batches = Batches(load_images(f"folder:{tmp_path}"), 2, 0, 0, workers=workers)
    with pytest.raises(UserError) as caught:
        list(batches(0, 1, slice(0, 2)))
    assert str(caught.value).startswith(str(tmp_path / "2.png"))
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes_need_a_size(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "1.png")
    Image.fromarray(pixels[0][:8]).save(tmp_path / "2.png")
    images = load_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="give a size"):
        images[1]
    assert load_images(f"folder:{tmp_path}", ImageTransform(size=8))[1][0].shape == (1, 8, 8)


def test_an_idx_header_that_promises_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(UserError, match="fetch the file again"):
        read_idx(path)


def collect(batches: Batches, first: int, last: int, rows: slice) -> dict[str, torch.Tensor]:
    parts = list(batches(first, last, rows))
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def test_batches_are_a_function_of_position() -> None:
    """Started late, or shared out over processes, updates see what one uninterrupted process sees."""
    batches = Batches(load_images("digits"), 12, seed=5, stage=2, flip=True, labelled=True)
    whole = collect(batches, 0, 8, slice(0, 12))
    late = collect(batches, 5, 8, slice(0, 12))
    halves = [collect(batches, 0, 8, slice(6 * part, 6 * part + 6)) for part in (0, 1)]
    for name, values in whole.items():
        assert torch.equal(values[5:], late[name])
        assert torch.equal(values, torch.cat([half[name] for half in halves], 1))
    assert whole["u"].dtype == torch.float64
    others = [Batches(load_images("digits"), 12, seed, stage) for seed, stage in ((6, 2), (5, 3))]
    for other in others:
        assert not torch.equal(collect(other, 0, 1, slice(0, 12))["eps"], whole["eps"][:1])


def test_an_epoch_sees_every_image_once() -> None:
    images = load_images("digits")
    x = collect(Batches(images, 599, 0, 0), 0, 3, slice(0, 599))["x"].flatten(0, 1)
    everything = images.sample(1797, 0)[0]
    assert torch.equal(x.flatten(1).sort(0).values, everything.flatten(1).sort(0).values)
    again = collect(Batches(images, 599, 0, 0), 3, 6, slice(0, 599))["x"].flatten(0, 1)
    assert not torch.equal(x, again)


def test_flips_mirror_about_half() -> None:
    images = load_images("digits")
    straight = collect(Batches(images, 500, 0, 0), 0, 1, slice(0, 500))["x"][0]
    flipped = collect(Batches(images, 500, 0, 0, flip=True), 0, 1, slice(0, 500))["x"][0]
    same = (straight == flipped).flatten(1).all(1)
    assert 200 < int(same.sum()) < 300
    assert torch.equal(flipped[~same], straight[~same].flip(-1))


def test_folders_behind_links_count_and_hidden_ones_do_not(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for place in ("elsewhere/cats", "data/dogs", "data/.cache", "data/dogs/.thumbnails"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(pixels[0]).save(tmp_path / place / "a.png")
    Image.fromarray(pixels[0]).save(tmp_path / "data" / "dogs" / "._b.png")
    (tmp_path / "data" / "cats").symlink_to(tmp_path / "elsewhere" / "cats", target_is_directory=True)
    (tmp_path / "data" / "dogs" / "round").symlink_to(tmp_path / "data", target_is_directory=True)  # a circle
    images = load_images(f"folder:{tmp_path / 'data'}")
    assert images.classes == ("cats", "dogs")
    assert len(images) == 2
