"""A folder of image files, with captions or without, indexed in one pass and kept in a few bytes a file.

The names of all files are one string of bytes, with where each ends and the folder that it is in: about 20 bytes a file
beside its name, so that 1.2 million files take 50 MB, shared by all workers.

Captions are in one of

    metadata.jsonl      a line {"file_name": "a.png", "text": "a handwritten seven"} for each image
    metadata.csv        columns file_name and text
    a.txt               beside a.png, where there is no metadata file

Every image must then have a caption, and every name in the metadata an image.
"""

import csv
import io
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from progdist._utils.errors import UserError
from progdist.data.images import SUFFIXES, CaptionedImages, Images, ImageTransform, Reader, captioned, open_image

METADATA, COLUMNS = ("metadata.jsonl", "metadata.csv"), ("file_name", "text")
"""The files that name images and their captions, and their columns."""


@dataclass(frozen=True)
class PathTable:
    """The paths of many files, in the order of their parts: folders, each file's, all names, and where each ends."""

    folders: list[str]
    folder_of: NDArray[np.int32]
    names: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        """One path; negative indices count from the end."""
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        name = os.fsdecode(self.names[start : int(self.ends[index])])
        return Path(self.folders[int(self.folder_of[index])], name)


def index_folder(root: Path) -> PathTable:
    """Find the image files in a folder and below, behind symbolic links, too; nothing whose name begins with a dot."""
    folders: list[str] = []
    folder_of, ends, names = array("i"), array("q"), bytearray()
    for folder, name in _image_files(str(root), frozenset()):
        if not folders or folders[-1] != folder:  # also where files follow those of a folder within: it comes again
            folders.append(folder)
        names += os.fsencode(name)
        folder_of.append(len(folders) - 1)
        ends.append(len(names))
    return PathTable(folders, np.array(folder_of, np.int32), bytes(names), np.array(ends, np.int64))


def _image_files(folder: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(folder, name) of every file, sorted by the parts of its path."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that holds it
        return
    within: set[str] = set()
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                within.add(entry.name)
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                continue
            names.append(entry.name)
    for name in sorted(names):
        if name in within:
            yield from _image_files(os.path.join(folder, name), above | {real})
        else:
            yield folder, name


@dataclass(frozen=True)
class ImageFiles(Reader):
    """Image files, opened when they are read."""

    paths: PathTable

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """The opened file."""
        path = self.paths[index]
        return open_image(path, str(path))


def open_folder(path_text: str, transform: ImageTransform) -> Images:
    """The images of a folder; class folders give labels, a flat folder gives none."""
    name, root = f"folder:{path_text}", _existing("folder", path_text)
    paths = index_folder(root)
    classes = [os.path.relpath(folder, root).split(os.sep)[0] for folder in paths.folders]
    names = tuple(sorted(set(classes) - {os.curdir}))
    numbers = {class_name: number for number, class_name in enumerate(names)} | {os.curdir: -1}
    labels = np.array([numbers[class_name] for class_name in classes], np.int64)[paths.folder_of]
    if names and (flat := int((labels < 0).sum())):
        raise UserError(f"{name} holds {flat} images beside class folders: move them into class folders")
    return Images(name, len(paths), ImageFiles(transform, paths), torch.from_numpy(labels) if names else None, names)


def open_captions(path_text: str, transform: ImageTransform) -> CaptionedImages:
    """The images of a folder with their captions."""
    root = _existing("captions", path_text)
    paths = index_folder(root)
    captions = read_captions(root, [paths[index] for index in range(len(paths))])
    return captioned(f"captions:{path_text}", ImageFiles(transform, paths), captions)


def _existing(scheme: str, path_text: str) -> Path:
    root = Path(path_text).expanduser()
    if not root.is_dir():
        kind = "images with captions" if scheme == "captions" else "images"
        raise UserError(f"{scheme}:{path_text} is no folder: give the path of a folder of {kind}")
    return root


def read_captions(folder: Path, images: Sequence[Path]) -> list[str]:
    """The caption of each of a folder's images, from one of METADATA or a text file beside each image.

    Raises:
        UserError: an image without a caption, a caption without an image, or a file that cannot be read.
    """
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{folder} holds both {' and '.join(METADATA)}: leave one of them")
    if metadata:
        texts = {folder / name: text for name, text in _listed(metadata[0])}
    else:
        texts = {image: _content(text) for image in images if (text := image.with_suffix(".txt")).is_file()}
    if lost := sorted(texts.keys() - set(images)):
        raise UserError(
            f"{metadata[0]} names {lost[0]}, which is no image there ({len(lost)} of {len(texts)} are not): restore "
            "the files, or remove their lines"
        )
    captions = [texts.get(image, "").strip() for image in images]
    if missing := [image for image, caption in zip(images, captions, strict=True) if not caption]:
        source = metadata[0] if metadata else f"{' or '.join(METADATA)}, or a .txt beside each image"
        raise UserError(
            f"{len(missing)} of {len(images)} images in {folder} have no caption, the first is {missing[0].name}: add "
            f"them ({source}), or remove the images"
        )
    return captions


def _listed(metadata: Path) -> Iterator[tuple[str, str]]:
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
