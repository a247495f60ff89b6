"""CIFAR and IDX files, whole and damaged."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from progdist import UserError
from progdist.data.formats import read_idx
from progdist.data.sources import load_images


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
    label_bytes = b"".join(b"K" + bytes([label]) for label in labels)
    rebuilt = b"cnumpy.core.multiarray\n_reconstruct\nq\x05U\x01bq\x06"
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5"
        + (b"U\x06labelsq\x03]q\x04(" + label_bytes + b"e")
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


def test_an_idx_header_that_promises_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(UserError, match="fetch the file again"):
        read_idx(path)
