"""Memory and openings of sources: bytes stay bytes, an index is a few bytes a file, nothing is opened twice."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from progdist.data import folders
from progdist.data.folders import index_folder
from progdist.data.images import ImageTransform, Reader
from progdist.data.sources import load_images, open_source

MIB = 2**20


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_an_index_is_in_the_order_of_its_paths(tmp_path: Path) -> None:
    """Paths in order are those of sorted(): part by part, whatever sorts before a slash."""
    for name in (
        "b/2.png",
        "b/10.png",
        "b-c/1.png",
        "b/x/3.JPG",
        "b/x.png",
        "é/ü.webp",
        "a/.hidden.png",
        "a/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = index_folder(tmp_path)
    found = [table[index] for index in range(len(table))]
    assert found == sorted(
        path for path in tmp_path.rglob("*") if path.suffix not in ("", ".txt") and path.name[0] != "."
    )
    assert len(found) == 6
    assert table[-1] == found[-1]
    with pytest.raises(IndexError):
        table[6]


@pytest.mark.usefixtures("traced")
def test_an_index_takes_a_few_bytes_a_file(tmp_path: Path) -> None:
    count, name = 20_000, "n01440764_{:08d}.JPEG"
    for number in range(count):
        folder = tmp_path / f"class{number % 20:04d}"
        if number < 20:
            folder.mkdir()
        (folder / name.format(number)).touch()
    tracemalloc.clear_traces()
    table = index_folder(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    assert len(table) == count
    assert held < count * (len(name.format(0)) + 30)
    assert len({table[index] for index in range(count)}) == count


def arrays(tmp_path: Path) -> str:
    np.savez(tmp_path / "a.npz", images=np.zeros((8 * 1024, 32, 32), np.uint8), labels=np.zeros(8 * 1024, np.int64))
    return f"npz:{tmp_path}/a.npz"


def idx(tmp_path: Path) -> str:
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (8 * 1024, 32, 32))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(8 * MIB))
    return f"idx:{tmp_path}"


def cifar(tmp_path: Path) -> str:
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073 * 2730))
    return f"cifar:{tmp_path}"


@pytest.mark.parametrize("write", [arrays, idx, cifar])
@pytest.mark.parametrize("transform", [ImageTransform(), ImageTransform(size=64, channels=3)])
@pytest.mark.usefixtures("traced")
def test_arrays_stay_bytes(write: Callable[[Path], str], transform: ImageTransform, tmp_path: Path) -> None:
    """8 MiB of pixels are 8 MiB in memory, framed or not, and no more than twice that on the way."""
    source = write(tmp_path)
    load_images("digits")  # what is imported once
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    images = open_source(source, transform)
    held, peak = tracemalloc.get_traced_memory()
    assert held < 8.7 * MIB
    assert peak < 17 * MIB
    assert isinstance(images.get, Reader)
    pixels: Any = images.get
    assert pixels.pixels.dtype == np.uint8
    assert images[5][0].dtype == torch.float32


def test_images_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a source opens each for its kind and one for its shape; halves open none, and other frames one more."""
    for number in range(9):
        Image.new("L", (12, 8)).save(tmp_path / f"{number}.png")
    opened: list[Path] = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(Path(path)) or plain(path, **how))
    monkeypatch.setattr(folders, "index_folder", calls := CountedCalls(index_folder))
    images = load_images(f"folder:{tmp_path}")
    assert len(opened) == 9 + 1
    images.split(4, 0)[0].split(2, 1)
    assert len(opened) == 9 + 1
    assert images.reframed(ImageTransform(size=4)).shape == (1, 4, 4)
    assert len(opened) == 9 + 2
    assert calls.count == 1
    assert images.shape == (1, 8, 12)


class CountedCalls:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *arguments: object) -> Any:  # noqa: ANN401
        self.count += 1
        return self.function(*arguments)
