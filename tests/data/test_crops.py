"""Several crops of an image: where they lie, the same from every source, and what a network is told of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import Table, parquet
from torch import Tensor

from progdist import UserError
from progdist.data import latents
from progdist.data.images import ArrayReader, CaptionedImages, Images, ImageTransform
from progdist.data.latents import begin_latents, encode, frame_shards, open_latents, split_label
from progdist.data.sources import cropped, load_images
from progdist.data.tables import Columns

WIDE, TALL = (20, 8), (8, 20)


def ramp(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels that tell where they are: 10 times the place along the longer side."""
    pixels = np.broadcast_to(10 * np.arange(20, dtype=np.uint8), (8, 20))
    return np.repeat((pixels if size == WIDE else pixels.T)[..., None], 3, axis=2)


def beginning(image: Tensor) -> int:
    """Where a crop of a ramp begins."""
    return round(float(image.min() + 1) * 127.5 / 10)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    place = tmp_path / "pairs"
    place.mkdir()
    for number in range(6):
        Image.fromarray(ramp(TALL if number % 2 else WIDE)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"caption {number % 4}")
    return place


@pytest.fixture
def images(pairs: Path) -> Images:
    return load_images(f"captions:{pairs}", ImageTransform(size=8))


def test_crops_are_spread_along_the_longer_side(images: Images) -> None:
    crops = cropped(images, 4, seed=0)
    assert (len(crops), crops.shape, crops.classes) == (24, (3, 8, 8), images.classes)
    starts = torch.tensor([beginning(crops[index][0]) for index in range(24)]).reshape(6, 4)
    low, high = torch.arange(4) * 13 / 4, (torch.arange(4) + 1) * 13 / 4
    assert ((low.floor() <= starts) & (starts <= high.floor())).all()  # one in each quarter of the 13 places
    assert len(starts.unique(dim=0)) > 1  # each image has a start of its own
    assert [crops[index][1] for index in range(24)] == [images[index // 4][1] for index in range(24)]
    assert torch.equal(crops[13][0], cropped(images, 4, seed=0)[13][0])
    others = torch.tensor([beginning(cropped(images, 4, seed=1)[index][0]) for index in range(24)]).reshape(6, 4)
    assert not torch.equal(starts, others)


def test_the_places_of_one_crop_are_uniform() -> None:
    places = np.repeat(ramp(WIDE)[None, ..., 0], 600, axis=0)
    many = cropped(Images("many", 600, ArrayReader(ImageTransform(size=8), places), None), 2, seed=3)
    starts = torch.tensor([beginning(many[index][0]) for index in range(0, 1200, 2)])
    counts = starts.bincount(minlength=7)  # of the first half: places 0 to 6, the last by half
    expected = torch.tensor([600 / 6.5] * 6 + [300 / 6.5])
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # chi squared of 6 degrees: one in a thousand


def test_a_table_gives_the_same_crops(pairs: Path, images: Images) -> None:
    files = [{"bytes": (pairs / f"{number}.png").read_bytes(), "path": None} for number in range(6)]
    table = pairs.parent / "a.parquet"
    parquet.write_table(Table.from_pydict({"image": files, "text": [f"caption {n % 4}" for n in range(6)]}), table)
    rows = load_images(f"parquet:{table}", ImageTransform(size=8), Columns(caption="text"))
    ours, theirs = (cropped(each, 3, seed=0) for each in (images, rows))
    for index in range(18):
        assert torch.equal(ours[index][0], theirs[index][0])
        assert ours.get.frame(index) == theirs.get.frame(index)  # pyright: ignore


@pytest.mark.parametrize(
    ("size", "new", "place", "frame"),
    [
        ((30, 20), 10, None, (20, 30, 0, 2)),  # 5 of 20 pixels is 2.5 of 10
        ((20, 30), 20, None, (30, 20, 5, 0)),
        ((30, 20), 40, 0.0, (20, 30, 0, 0)),
        ((30, 20), 40, 0.99, (20, 30, 0, 20)),  # the last place: 10 of 20 pixels
        ((30, 20), None, None, (20, 30, 0, 0)),
        ((8, 8), 8, 0.5, (8, 8, 0, 0)),
    ],
)
def test_a_frame_is_the_size_and_the_crops_beginning(
    size: tuple[int, int], new: int | None, place: float | None, frame: tuple[int, ...]
) -> None:
    assert ImageTransform(size=new).frame(size, place) == frame


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="square images, of which there is one crop"):
        cropped(load_images("digits"), 2, seed=0)
    Image.fromarray(ramp(WIDE)).save(tmp_path / "a.png")
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    parquet.write_table(Table.from_pydict({"image": [content]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="is read as it comes, one crop of each image"):
        cropped(load_images(f"parquet:{tmp_path}", ImageTransform(size=8)), 2, seed=0)


class Mean:
    """Stands for an autoencoder."""

    def encode(self, images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True)


def test_latents_keep_their_frames(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by the processes that encode; an example is found by its label, in parts of the data, too."""
    monkeypatch.setattr(latents, "ROWS", 7)
    crops = cropped(images, 4, seed=0)
    assert begin_latents(crops, tmp_path, framed=True) == 4
    for process in range(2):
        encode(crops, Mean(), tmp_path, process, 2, framed=True)
    found, frames = open_latents(crops, tmp_path, framed=True), frame_shards(crops, tmp_path)
    assert isinstance(found, CaptionedImages)
    for part in (found, *found.split(5, seed=0)):
        for index in range(len(part)):
            latent, label = part[index]
            captions, examples = split_label(torch.tensor([label]), len(images.classes))
            example = int(examples)
            image, caption = crops[example]
            torch.testing.assert_close(latent, image.mean((1, 2), keepdim=True))
            assert int(captions) == caption
            offset = beginning(image)
            wide = example // 4 % 2 == 0
            assert frames[example].tolist() == ([8, 20, 0, offset] if wide else [20, 8, offset, 0])
    assert split_label(torch.tensor([3]), 4)[1].tolist() == [-1]  # a caption alone
    plain = open_latents(crops, tmp_path)
    assert [plain[index][1] for index in range(24)] == [crops[index][1] for index in range(24)]


def test_frames_are_added_to_latents_that_are_there(images: Images, tmp_path: Path) -> None:
    begin_latents(images, tmp_path)
    encode(images, Mean(), tmp_path)
    assert begin_latents(images, tmp_path) == 0
    assert begin_latents(images, tmp_path, framed=True) == 1
    before = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    encode(images, Mean(), tmp_path, framed=True)
    assert begin_latents(images, tmp_path, framed=True) == 0
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == before
