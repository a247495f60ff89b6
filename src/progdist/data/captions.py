"""The captions of a folder of images.

    metadata.jsonl      a line {"file_name": "a.png", "text": "a handwritten seven"} for each image
    metadata.csv        columns file_name and text
    a.txt               beside a.png, where there is no metadata file

Every image must have a caption, and every name in the metadata an image.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from progdist._utils.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
"""The files that name images and their captions."""

COLUMNS = ("file_name", "text")
"""What they call an image and its caption."""


def read_captions(folder: Path, images: Sequence[Path]) -> list[str]:
    """The caption of each of a folder's images.

    Args:
        folder: with one of METADATA, or a text file beside each image.
        images: in the folder or below.

    Raises:
        UserError: an image without a caption, a caption without an image, or a file that cannot be read.
    """
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{folder} holds both {' and '.join(METADATA)}: leave one of them")
    known = {folder / name: text for name, text in _listed(metadata[0])} if metadata else dict(_beside(images))
    if lost := sorted(known.keys() - set(images)):
        raise UserError(
            f"{metadata[0] if metadata else folder} names {lost[0]}, which is no image there ({len(lost)} of "
            f"{len(known)} are not): restore the files, or remove their lines"
        )
    captions = [known.get(image, "").strip() for image in images]
    if missing := [image for image, caption in zip(images, captions, strict=True) if not caption]:
        source = metadata[0] if metadata else f"{' or '.join(METADATA)}, or a .txt beside each image"
        raise UserError(
            f"{len(missing)} of {len(images)} images in {folder} have no caption, the first is {missing[0].name}: add "
            f"them ({source}), or remove the images"
        )
    return captions


def _beside(images: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Images and the content of the text files beside them, where there are any."""
    for image in images:
        text = image.with_suffix(".txt")
        if text.is_file():
            yield image, _content(text)


def _listed(metadata: Path) -> Iterator[tuple[str, str]]:
    """Names of files and their captions."""
    seen: set[str] = set()
    rows = _json_lines(metadata) if metadata.suffix == ".jsonl" else _table(metadata)
    for number, row in rows:
        if missing := [column for column in COLUMNS if not isinstance(row.get(column), str)]:
            columns = ", ".join(map(str, row)) or "nothing"
            raise UserError(
                f"{metadata}, line {number} has {columns}: expected {' and '.join(COLUMNS)}, as text, and "
                f"{missing[0]} is missing"
            )
        name, text = (row[column] for column in COLUMNS)
        if name in seen:
            raise UserError(f"{metadata}, line {number} names {name} again: leave one of its captions")
        seen.add(name)
        yield name, text


def _json_lines(metadata: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    for number, line in enumerate(_content(metadata).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{metadata}, line {number} is not JSON ({error}): mend it") from error
        if not isinstance(row, dict):
            raise UserError(f"{metadata}, line {number} holds a {type(row).__name__}, expected an object: mend it")
        yield number, row


def _table(metadata: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        yield from enumerate(csv.DictReader(io.StringIO(_content(metadata), newline="")), 2)
    except csv.Error as error:
        raise UserError(f"{metadata} is no CSV file ({error}): mend it") from error


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): restore it as UTF-8") from error
