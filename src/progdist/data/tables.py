"""Images in tables: Hugging Face data sets, Parquet files and tar shards.

    hub:NAME        a data set of the Hugging Face hub (extra `hub`)
    wds:PATH        WebDataset tar shards, local or remote, as `train-{000000..000099}.tar`: jpg, png or webp, and cls
    parquet:PATH    Parquet files of Hugging Face data sets, as `data/train-*.parquet`; columns image and label

With a caption column (of tar shards `txt`, or a field of `json`, written json.caption) rows are pairs of image and
caption. Those, and hub data sets, are read by `datasets`, which converts Parquet and tar files once to Arrow files in
its own cache and maps these into memory, so that any row can be had at any time. Without captions `wds:` and
`parquet:` stream (see `streams`). A missing extra, file or column is a UserError.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec
import torch
from PIL import Image

from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist.data.images import CaptionedImages, Images, ImageTransform, Reader, captioned, readable
from progdist.data.streams import Example, StreamedImages

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg", "webp")  # where an image is looked for if no column is named
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None to look for IMAGE_COLUMNS, and for labels in place of captions."""

    image: str | None = None
    caption: str | None = None

    def __bool__(self) -> bool:
        """Whether any is named."""
        return self.image is not None or self.caption is not None


@dataclass(frozen=True)
class _Table(Reader):
    """The image column of a table, which reads from its own files."""

    table: Any
    column: str
    name: str

    @contextmanager
    def open(self, index: int) -> Iterator[Image.Image]:
        """The image of a row, as `datasets` decodes it."""
        with readable(f"{self.name}: {self.column} of row {index}"):
            image = self.table[index][self.column]
            if image is None:
                raise ValueError("there is none")
            yield image


def open_hub(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of a hub data set, with labels or captions."""
    name = f"hub:{path_text}"
    table = _load(name, path_text)
    if columns.caption:
        return _pairs(name, table, transform, columns)
    column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    labels = None if column is None else torch.tensor(table[column][:])
    return Images(name, len(table), _image_column(name, table, transform, columns), labels)


def _load(name: str, path: str, **files: list[str]) -> Any:  # noqa: ANN401
    """A table of `datasets`, without its progress bars."""
    datasets = import_extra("datasets", "hub", name)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, split="train", **files)
    except Exception as error:  # the library raises many kinds: all mean that it cannot be had
        raise UserError(f"{name} cannot be loaded ({' '.join(str(error).split())[:300]})") from error


def _image_column(name: str, table: Any, transform: ImageTransform, columns: Columns) -> _Table:  # noqa: ANN401
    import datasets

    names = table.column_names
    column = columns.image or next((default for default in IMAGE_COLUMNS if default in names), None)
    if column is None or column not in names:
        missing = f"no {columns.image}" if columns.image else f"none of them {', '.join(IMAGE_COLUMNS)}"
        raise UserError(f"{name} has columns {', '.join(names)}, {missing}: name the images' with --image-column")
    if not isinstance(table.features[column], datasets.Image):  # bytes, which any Parquet writer leaves
        table = table.cast_column(column, datasets.Image())
    return _Table(transform, table, column, name)


def _pairs(name: str, table: Any, transform: ImageTransform, columns: Columns) -> CaptionedImages:  # noqa: ANN401
    """The pairs of a table; a caption is the number of a distinct one."""
    assert columns.caption is not None
    column, *fields = columns.caption.split(".")
    if column not in table.column_names:
        names = ", ".join(table.column_names)
        raise UserError(f"{name} has columns {names}, no {column}: name the captions' with --caption-column")
    captions = list(table[column])
    for field in fields:
        captions = [row.get(field) if isinstance(row, dict) else None for row in captions]
    captions = [text.strip() if isinstance(text, str) else "" for text in captions]
    if missing := [row for row, text in enumerate(captions) if not text]:
        raise UserError(
            f"{name}: {len(missing)} of {len(captions)} rows have no text in {columns.caption}, the first is row "
            f"{missing[0]}: remove them, or name the captions' column with --caption-column"
        )
    return captioned(name, _image_column(name, table, transform, columns), captions)


def open_webdataset(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of WebDataset tar shards: a stream, or pairs if a caption column is named."""
    shardlists = import_extra("webdataset", "stream", "wds: data").shardlists
    name = f"wds:{path_text}"
    shards = _files(shardlists.expand_urls(path_text), ".tar", name)
    if columns.caption:
        return _pairs(name, _load(name, "webdataset", data_files=shards), transform, columns)
    return StreamedImages(name, shards, partial(_read_tar, named=columns.image), transform)


def _read_tar(shard: str, named: str | None) -> Iterator[Example]:
    from webdataset import tariterators

    with fsspec.open(shard, "rb") as opened:  # not webdataset's own gopen, which runs what follows `pipe:` in a shell
        files = tariterators.tar_file_expander([{"url": shard, "stream": opened}])
        for sample in cast(Iterator[dict[str, Any]], tariterators.group_by_keys(files)):
            names = (named,) if named else ("jpg", "jpeg", "png", "webp")
            image = next((sample[name] for name in names if name in sample), None)
            if image is None:
                raise UserError(f"{shard}: {sample['__key__']} has no {' or '.join(names)}: remove it")
            yield image, int(sample.get("cls", b"0"))


def open_parquet(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of Parquet files, a column of {bytes, path} or of bytes: a stream, or pairs as of WebDataset."""
    import_extra("pyarrow", "stream", "parquet: data")
    name = f"parquet:{path_text}"
    shards = _files([path_text], ".parquet", name)
    if columns.caption:
        return _pairs(name, _load(name, "parquet", data_files=shards), transform, columns)
    return StreamedImages(name, shards, partial(_read_parquet, named=columns.image), transform)


def _read_parquet(shard: str, named: str | None) -> Iterator[Example]:
    from pyarrow import parquet

    with fsspec.open(shard, "rb") as opened, parquet.ParquetFile(cast(Any, opened)) as file:
        names = file.schema_arrow.names
        columns = (named,) if named else IMAGE_COLUMNS
        image = next((name for name in columns if name in names), None)
        label = next((name for name in LABEL_COLUMNS if name in names), None)
        if image is None:
            raise UserError(f"{shard} has columns {', '.join(names)}, none of them {', '.join(columns)}")
        for rows in file.iter_batches(batch_size=64, columns=[image, label] if label else [image]):
            labels = rows.column(label).to_pylist() if label else [0] * len(rows)
            for content, number in zip(rows.column(image).to_pylist(), labels, strict=True):
                yield content["bytes"] if isinstance(content, dict) else content, int(number)


def _files(patterns: Sequence[str], suffix: str, name: str) -> list[str]:
    """The files that local patterns match, or those in a folder; addresses as they are."""
    files: list[str] = []
    for text in patterns:
        path = Path(text).expanduser()
        if "://" in text:
            files.append(text)
        elif path.is_dir():
            files += sorted(str(file) for file in path.iterdir() if file.suffix == suffix)
        else:
            files += sorted(glob.glob(str(path)))
    if not files:
        raise UserError(f"{name} matches no files: give a folder, or a pattern such as train-*.tar or train-*.parquet")
    return files
