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
from progdist.data.latents import LatentFolder
from progdist.data.sources import cropped, load_images
from progdist.models.prompts import PromptConditions
from progdist.training.batches import Batches

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
    return load_images(f"captions:{pairs}", size=8)


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
    rows = load_images(f"parquet:{table}", size=8, caption_column="text")
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
    with pytest.raises(UserError, match="square images, which have one crop"):
        cropped(load_images("digits"), 2, seed=0)
    Image.fromarray(ramp(WIDE)).save(tmp_path / "a.png")
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    parquet.write_table(Table.from_pydict({"image": [content]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="is a stream, which gives one crop per image"):
        cropped(load_images(f"parquet:{tmp_path}", size=8), 2, seed=0)


class Mean:
    """Stands for an autoencoder."""

    def encode(self, images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True)


def test_latents_keep_their_frames(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by the processes that encode; each example brings its own, in parts of the data and in batches, too."""
    monkeypatch.setattr(latents, "ROWS", 7)
    crops = cropped(images, 4, seed=0)
    folder = LatentFolder(crops, tmp_path, framed=True)
    assert folder.prepare() == 4
    for process in range(2):
        folder.encode(Mean(), process, 2)
    found = folder.open()
    assert isinstance(found, CaptionedImages)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for part, numbers in zip(
        (found, *found.split(5, 0)), (range(24), order[5:].sort()[0], order[:5].sort()[0]), strict=True
    ):
        assert len(part) == len(numbers)
        for index, example in enumerate(map(int, numbers)):
            latent, condition = part[index]
            assert isinstance(condition, dict)
            image, caption = crops[example]
            torch.testing.assert_close(latent, image.mean((1, 2), keepdim=True))
            assert condition["labels"] == caption
            offset = beginning(image)
            wide = example // 4 % 2 == 0
            assert condition["frame"].tolist() == ([8, 20, 0, offset] if wide else [20, 8, offset, 0])
    batch = next(Batches(found, 24, seed=0, stage=0)(0, 1, slice(0, 24)))
    assert (batch["frame"].shape, batch["frame"].dtype) == ((24, 4), torch.int64)
    assert torch.equal(batch["labels"].bincount(), crops.labels.bincount())  # pyright: ignore
    plain = LatentFolder(crops, tmp_path).open()
    assert [plain[index][1] for index in range(24)] == [crops[index][1] for index in range(24)]


def test_frames_are_added_to_latents_that_are_there(images: Images, tmp_path: Path) -> None:
    plain, framed = LatentFolder(images, tmp_path), LatentFolder(images, tmp_path, framed=True)
    plain.prepare()
    plain.encode(Mean())
    assert plain.prepare() == 0
    assert framed.prepare() == 1
    before = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    framed.encode(Mean())
    assert framed.prepare() == 0
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == before


def test_a_network_is_told_the_frame_where_there_is_one() -> None:
    """time_ids of a batch with frames and of one without, as in sampling, where the stock pipeline's numbers stand."""
    stock = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    conditions = PromptConditions(lambda numbers: {"embeddings": rows[numbers]}, {"time_ids": stock})
    labels, frame = torch.tensor([2, 0]), torch.tensor([[8, 20, 0, 3], [20, 8, 5, 0]])
    sampled, trained = conditions({"labels": labels}), conditions({"labels": labels, "frame": frame})
    assert torch.equal(sampled["time_ids"], stock.expand(2, 6))
    assert torch.equal(trained["time_ids"], torch.tensor([[8.0, 20, 0, 3, 64, 64], [20, 8, 5, 0, 64, 64]]))
    assert torch.equal(trained["embeddings"], rows[labels])
