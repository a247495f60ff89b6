"""Images in tables: Hugging Face data sets, Parquet files and tar shards.

    hub:NAME        a data set of the Hugging Face hub (extra `hub`)
    wds:PATH        WebDataset tar shards, local or remote, e.g. `train-{000000..000099}.tar`: jpg, png or webp, and cls
    parquet:PATH    Parquet files of Hugging Face data sets, e.g. `data/train-*.parquet`; columns image and label

With a caption column (in tar shards `txt`, or a field of `json`, written json.caption) rows are pairs of image and
caption. These, and hub data sets, are read by `datasets`, which converts Parquet and tar files once to Arrow files in
its own cache and maps them into memory for random access. Without captions `wds:` and `parquet:` stream (see
`streams`). A missing extra, file or column is a UserError.
"""

import glob
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from PIL import Image

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.files import local_path
from progdist._utils.words import counted, shortened
from progdist.data.images import CaptionedImages, Images, ImageTransform, Reader, captioned
from progdist.data.labels import Labels, read_labels
from progdist.data.pictures import open_image, suffixes
from progdist.data.splits import training_shards
from progdist.data.streams import Example, StreamedImages

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg", "webp")  # default names of the image column
TAR_IMAGES = ("jpg", "jpeg", "png", "webp")  # tried first in a sample of tar shards, before other readable formats
MOST_BYTES = 2**28  # of one file in a tar
META = re.compile(r"__[^/]*__($|/)")  # webdataset's own files
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None for one of IMAGE_COLUMNS, and for labels instead of captions."""

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

    def _source(self) -> str:
        return digest(self.table._fingerprint, self.column)

    @contextmanager
    def open(self, index: int) -> Iterator[Image.Image]:
        """The image of a row, opened like any file."""
        name, content = f"{self.name}: {self.column} of row {index}", self.table[index][self.column]
        if content is None or (content["bytes"] is None and content["path"] is None):
            raise UserError(f"{name} is empty: remove the row")
        with open_image(_file(content, name), name) as image:
            yield image


def _file(content: Mapping[str, Any], name: str) -> Path | io.BytesIO:
    """The file of an image that `datasets` did not decode: its bytes, or a path, local or remote."""
    if content["bytes"] is not None:
        return io.BytesIO(content["bytes"])
    path = content["path"]
    if Path(path).exists():
        return Path(path)
    try:
        with fsspec.open(path, "rb") as opened:
            return io.BytesIO(cast(Any, opened).read())
    except Exception as error:  # each file system raises its own kinds: all mean that the file cannot be read
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot be read as an image ({reason}): restore {path}") from error


def _bytes(content: object, name: str, column: str) -> bytes:
    """An undecoded image of a Parquet file; empty for an empty row."""
    if isinstance(content, str):
        content = {"bytes": None, "path": content}
    if isinstance(content, dict) and content.get("bytes") is None and content.get("path") is not None:
        file = _file({"bytes": None, "path": content["path"]}, name)
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    content = content.get("bytes") if isinstance(content, dict) else content
    if content is not None and not isinstance(content, bytes):
        raise UserError(
            f"{name}: {column} holds {type(content).__name__}, expected images or their bytes: {_named('image')}"
        )
    return content or b""


def open_hub(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of a hub data set, with labels or captions."""
    name = f"hub:{path_text}"
    import_extra("datasets", "hub", name)
    table = _load(name, _plainly_named(path_text))
    if columns.caption:
        return _pairs(name, table, transform, columns)
    labels = _label_column(name, table)
    get = _image_column(name, table, transform, columns)
    return Images(name, len(table), get, labels.values, labels.names, notes=labels.notes)


def _label_column(name: str, table: Any) -> Labels:  # noqa: ANN401
    """The labels of a table; labels that are neither numbers nor names are ignored."""
    column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if column is None:
        return Labels()

    def image(row: int) -> str:
        return f"{name}: row {row}"

    kind = table.features[column]
    names = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None) or ()
    plain = table.with_format("arrow").data.column(column)  # as stored: images are not decoded
    first = read_labels(plain.slice(0, 1).to_pylist(), image, names)
    return first if first.notes else read_labels(plain.to_pylist(), image, names)


def _load(name: str, path: str, **files: list[str]) -> Any:  # noqa: ANN401
    """A table of `datasets`, without its progress bars."""
    datasets = import_extra("datasets", "hub", name)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, split="train", **files)
    except Exception as error:  # the library raises many kinds: all mean that the table cannot be loaded
        raise UserError(f"{name} cannot be loaded ({' '.join(str(error).split())[:300]})") from error


def _load_files(name: str, kind: str, shards: Sequence[str]) -> Any:  # noqa: ANN401
    import_extra("datasets", "hub", name)
    return _load(name, kind, data_files=[_plainly_named(shard) for shard in shards])


def _plainly_named(text: str) -> str:
    """A path that `datasets` does not read as a pattern: its own, or one through links to the files."""
    from datasets import config

    path = local_path(text)
    if not path.exists() or not re.search(r"[*?\[\]{}\n~%#]|::", str(path.absolute())):
        return str(path) if path.exists() else text
    there = path.resolve()
    links = Path(config.HF_DATASETS_CACHE) / "links" / hashlib.sha256(os.fsencode(there)).hexdigest()
    named = {links / f"data{there.suffix}": there}
    if there.is_dir():
        named = {links / file.relative_to(there): file for file in there.rglob("*") if file.is_file()}
    for link, file in named.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # left by an earlier call or another process
            link.symlink_to(file)
    return str(links if there.is_dir() else next(iter(named)))


def _named(kind: str) -> str:
    return f"name the {kind}s' with --{kind}-column ({kind}_column= from Python)"


def _image_column(name: str, table: Any, transform: ImageTransform, columns: Columns) -> _Table:  # noqa: ANN401
    import datasets

    names = table.column_names
    column = columns.image or next((default for default in IMAGE_COLUMNS if default in names), None)
    if column is None or column not in names:
        missing = f"not {columns.image}" if columns.image else f"none of {', '.join(IMAGE_COLUMNS)}"
        raise UserError(f"{name} has columns {', '.join(names)}, {missing}: {_named('image')}")
    try:
        table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # the library raises many kinds
        raise UserError(
            f"{name}: {column} holds {table.features[column]}, expected images or their bytes: {_named('image')}"
        ) from error
    return _Table(transform, table, column, name)


def _pairs(name: str, table: Any, transform: ImageTransform, columns: Columns) -> CaptionedImages:  # noqa: ANN401
    """The pairs of a table; a caption is the number of a distinct text."""
    assert columns.caption is not None
    column, *fields = columns.caption.split(".")
    if column not in table.column_names:
        names = ", ".join(table.column_names)
        raise UserError(f"{name} has columns {names}, not {column}: {_named('caption')}")
    captions = list(table[column])
    for field in fields:
        captions = [row.get(field) if isinstance(row, dict) else None for row in captions]
    captions = [text.strip() if isinstance(text, str) else "" for text in captions]
    if missing := [row for row, text in enumerate(captions) if not text]:
        raise UserError(
            f"{name}: {len(missing)} of {len(captions)} rows have no text in {columns.caption}, the first is row "
            f"{missing[0]}: remove them, or {_named('caption')}"
        )
    return captioned(name, _image_column(name, table, transform, columns), captions)


def open_webdataset(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of WebDataset tar shards: a stream, or pairs if a caption column is named."""
    shardlists = import_extra("webdataset", "stream", "wds: data").shardlists
    name = f"wds:{path_text}"
    there = local_path(path_text)
    shards = _files([path_text] if there.exists() else shardlists.expand_urls(path_text), ".tar", name)
    if columns.caption:
        return _pairs(name, _load_files(name, "webdataset", shards), transform, columns)
    return StreamedImages(name, shards, partial(_read_tar, named=columns.image), transform)


def _read_tar(shard: str, named: str | None) -> Iterator[Example]:
    from webdataset import tariterators

    with _opened(shard) as opened:  # not webdataset's own gopen, which runs text after `pipe:` in a shell
        for sample in cast(Iterator[dict[str, Any]], tariterators.group_by_keys(_tar_files(opened, shard))):
            names = (named,) if named else (*TAR_IMAGES, *sorted(suffix[1:] for suffix in suffixes()))
            image = next((sample[name] for name in names if name in sample), None)
            if image is None:
                raise UserError(f"{shard}: {sample['__key__']} has no {named or ' or '.join(TAR_IMAGES)}: remove it")
            yield Example(image, _class_in(sample, shard), f"{shard}: {sample['__key__']}")


def _tar_files(stream: IO[bytes], shard: str) -> Iterator[dict[str, Any]]:
    """The files of a tar, grouped as webdataset does. Raise a UserError for one larger than MOST_BYTES.

    A few bytes of a compressed tar, or none of a sparse file, can unpack to any size.
    """
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if not member.isreg() or META.match(member.name):
                continue
            if member.size > MOST_BYTES:
                raise UserError(
                    f"{shard}: {shortened(member.name)} holds {member.size:,} bytes, expected at most {MOST_BYTES:,}: "
                    "remove it"
                )
            content = tar.extractfile(member)
            yield {"fname": member.name, "data": content.read() if content else b"", "__url__": shard}
            cast(Any, tar).members = []  # tarfile would keep them


def _class_in(sample: Mapping[str, Any], shard: str) -> str | None:
    """The content of a sample's .cls; None if it has none."""
    content = sample.get("cls")
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        got = shortened(repr(content))
        raise UserError(
            f"{shard}: {sample['__key__']}.cls is {got}, expected a class number or name as text: fix it"
        ) from None


def open_parquet(path_text: str, transform: ImageTransform, columns: Columns) -> Images:
    """The images of Parquet files, a column of {bytes, path} or of bytes: a stream, or pairs as for WebDataset."""
    import_extra("pyarrow", "stream", "parquet: data")
    name = f"parquet:{path_text}"
    shards = _files([path_text], ".parquet", name)
    if columns.caption:
        return _pairs(name, _load_files(name, "parquet", shards), transform, columns)
    read = partial(_read_parquet, named=columns.image)
    return StreamedImages(name, shards, read, transform, _class_names(shards[0]))


def _class_names(shard: str) -> Sequence[str]:
    """The class names that `datasets` stores with a file's columns, in the order of the labels; may be empty."""
    from pyarrow import parquet

    try:
        with _opened(shard) as opened, parquet.ParquetFile(cast(Any, opened)) as file:
            kept = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        kinds = kept["info"]["features"]
        names = next(kinds[label]["names"] for label in LABEL_COLUMNS if label in kinds)
        return [str(name) for name in names]
    except Exception:  # an unreadable file is reported when its images are read
        return ()


def _read_parquet(shard: str, named: str | None) -> Iterator[Example]:
    from pyarrow import parquet

    with _opened(shard) as opened, parquet.ParquetFile(cast(Any, opened)) as file:
        names = file.schema_arrow.names
        columns = (named,) if named else IMAGE_COLUMNS
        image = next((name for name in columns if name in names), None)
        label = next((name for name in LABEL_COLUMNS if name in names), None)
        if image is None:
            raise UserError(f"{shard} has columns {', '.join(names)}, none of {', '.join(columns)}: {_named('image')}")
        row = count()
        for rows in file.iter_batches(batch_size=64, columns=[image, label] if label else [image]):
            labels = rows.column(label).to_pylist() if label else [None] * len(rows)
            for content, said in zip(rows.column(image).to_pylist(), labels, strict=True):
                name = f"{shard}: row {next(row)}"
                yield Example(_bytes(content, name, image), said, name)


def _opened(shard: str) -> Any:  # noqa: ANN401  (a local file, or one of fsspec)
    return Path(shard).open("rb") if Path(shard).exists() else fsspec.open(shard, "rb")


def _shards_in(folder: Path, suffix: str, name: str) -> list[str]:
    """The files of a folder, or of its training split, named as by `datasets`: train-00000-of-00002.parquet."""
    files = sorted(file for file in folder.iterdir() if file.suffix == suffix)
    chosen = set(training_shards([file.stem for file in files], name))
    return [str(file) for file in files if file.stem in chosen]


def _files(patterns: Sequence[str], suffix: str, name: str) -> list[str]:
    """The files of paths, folders or patterns (an existing path is not a pattern); addresses are unchanged."""
    files, missing = list[str](), list[str]()
    for text in patterns:
        path = local_path(text)
        if path.is_dir():
            files += _shards_in(path, suffix, name)
        elif path.exists() or "://" in text:
            files.append(str(path) if path.exists() else text)
        elif found := sorted(glob.glob(str(path))):
            files += found
        else:
            missing.append(text)
    if not files:
        raise UserError(f"{name} matches no files: give a folder, or a pattern such as train-*.tar or train-*.parquet")
    if missing:
        raise UserError(
            f"{missing[0]} is missing ({len(missing)} of {counted(len(patterns), 'file')} named by {name}): fetch it, "
            "or name those that exist"
        )
    return files
