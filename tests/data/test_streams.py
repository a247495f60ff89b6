"""Streams: what is read is what was written, the same after a resume, in shares that do not overlap."""

import io
import sys
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import Table, parquet

from progdist import UserError
from progdist.data import streams
from progdist.data.images import ImageTransform
from progdist.data.latents import LatentFolder
from progdist.data.sources import load_images
from progdist.training.batches import Batches

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors

SHARDS, EACH = 6, 20


def png(level: int) -> bytes:
    """A grey image of one level, which tells it from the others."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "png")
    return buffer.getvalue()


def levels(shard: int) -> list[int]:
    return [2 * (EACH * shard + number) for number in range(EACH)]


def tars(folder: Path) -> str:
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as file:
            for level in levels(shard):
                for name, content in ((f"{level:05d}.png", png(level)), (f"{level:05d}.cls", b"%d" % (level // 2 % 3))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return f"wds:{folder}/train-{{000000..00000{SHARDS - 1}}}.tar"


def tables(folder: Path) -> str:
    for shard in range(SHARDS):
        images = [{"bytes": png(level), "path": None} for level in levels(shard)]
        labels = [level // 2 % 3 for level in levels(shard)]
        parquet.write_table(Table.from_pydict({"image": images, "label": labels}), folder / f"train-{shard}.parquet")
    return f"parquet:{folder}/train-*.parquet"


@pytest.fixture(params=[tars, tables])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(streams, "BUFFER", 10)
    write: Callable[[Path], str] = request.param
    return write(tmp_path)


def seen(batches: Batches, first: int, last: int, rows: slice) -> list[list[int]]:
    """The levels that each update sees."""
    return [
        ((batch["x"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        for batch in batches(first, last, rows)
    ]  # fmt: skip


def test_a_shard_that_is_named_and_missing_is_refused(tmp_path: Path) -> None:
    """Half of a data set that was not fetched to its end is not all of it."""
    source = tars(tmp_path)
    (tmp_path / "train-000003.tar").unlink()
    with pytest.raises(UserError, match=r"train-000003.tar is missing \(1 of 6 files named by wds:.*\): fetch it"):
        load_images(source)
    assert len(load_images(f"wds:{tmp_path}/train-*.tar")) == (SHARDS - 1) * EACH


def test_what_was_written_is_read(source: str) -> None:
    images = load_images(source)
    assert (images.shape, images.classes, len(images)) == ((1, 4, 4), ("0", "1", "2"), SHARDS * EACH)
    x, labels = images.sample(SHARDS * EACH, 0)
    assert ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == [2 * number for number in range(SHARDS * EACH)]
    assert labels.tolist() == [number % 3 for number in range(SHARDS * EACH)]
    assert images.reframed(ImageTransform(2, 3)).shape == (3, 2, 2)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_resume_sees_what_an_uninterrupted_run_sees(source: str, workers: int) -> None:
    batches = Batches(load_images(source), 8, 3, 1, workers=workers)
    whole = seen(batches, 0, 12, slice(0, 8))
    assert len(whole) == 12
    assert seen(batches, 5, 12, slice(0, 8)) == whole[5:]
    assert seen(batches, 0, 12, slice(0, 8)) == whole
    other = Batches(load_images(source), 8, 4, 1, workers=workers)
    assert seen(other, 0, 12, slice(0, 8)) != whole
    noise, again = (next(iter(batches(7, 8, slice(0, 8))))["eps"] for _ in range(2))
    assert torch.equal(noise, again)


@pytest.mark.parametrize("workers", [0, 3])
def test_processes_share_the_shards_out(source: str, workers: int) -> None:
    """No image is seen by two processes, and within 12 updates each sees nearly all of its own."""
    batches = Batches(load_images(source), 16, 0, 1, workers=workers)
    first, second = (set(chain(*seen(batches, 0, 24, slice(start, start + 8)))) for start in (0, 8))
    assert not first & second
    assert len(first) > 45
    assert len(second) > 45


def test_labels_stay_with_their_images(source: str) -> None:
    batches = Batches(load_images(source), 30, 0, 1)
    for batch in batches(0, 3, slice(0, 30)):
        level = ((batch["x"][:, 0, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(level // 2 % 3, batch["labels"])


def test_every_reader_needs_a_shard(source: str) -> None:
    batches = Batches(load_images(source), 14, 0, 1)
    with pytest.raises(UserError, match="6 shards for 7 processes"):
        next(iter(batches(0, 1, slice(0, 2))))


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    parquet.write_table(Table.from_pydict({"text": ["a"]}), tmp_path / "text.parquet")
    parquet.write_table(Table.from_pydict({"image": [b"no picture"]}), tmp_path / "picture.parquet")
    for name, cells in (("numbers", [1]), ("lists", [[1, 2]]), ("paths", ["nowhere.png"]), ("empty", [b""])):
        parquet.write_table(Table.from_pydict({"image": cells}), tmp_path / f"{name}.parquet")
    for scheme, name, says in (
        ("wds", "none-*.tar", "matches no files"), ("parquet", "none-*", "matches no files"),
        ("wds", "bad.tar", "cannot be read"), ("parquet", "bad.parquet", "cannot be read"),
        ("parquet", "text.parquet", "none of image"), ("parquet", "picture.parquet", "cannot be read"),
        ("parquet", "numbers.parquet", "row 0: image holds int, expected images or their bytes"),
        ("parquet", "lists.parquet", "row 0: image holds list, expected images or their bytes"),
        ("parquet", "paths.parquet", "row 0 cannot be read as an image"),
        ("parquet", "empty.parquet", "row 0 is empty"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says) as caught:
            load_images(f"{scheme}:{tmp_path}/{name}")
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match=r"progdist\[stream\]"):
        load_images(f"wds:{tmp_path}/bad.tar")


def test_what_a_stream_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images(tables(tmp_path))
    with pytest.raises(UserError, match=r"remove distill\.stop"):
        images.split(3, 0)
    with pytest.raises(UserError, match="cannot be encoded once"):
        LatentFolder(images, tmp_path / "latents").prepare()
    monkeypatch.setattr(streams, "KEPT", 1)  # the first image is of class 0: the others come as a surprise
    monkeypatch.setattr(streams, "BUFFER", 10)
    with pytest.raises(UserError, match="1 image before it have 1 class: shuffle the shards so that"):
        next(iter(Batches(load_images(tables(tmp_path)), 8, 0, 1)(0, 1, slice(0, 8))))


def test_a_stream_of_an_address(tmp_path: Path) -> None:
    tables(tmp_path)
    assert len(load_images(f"parquet:file://{tmp_path}/train-0.parquet")) == EACH
