"""A folder of image files, with or without captions, indexed in one pass at a few bytes per file.

All file names are one string of bytes, with the end and the folder of each: about 20 bytes per file in addition to its
name, so 1.2 million files take 50 MB, shared by all workers.

Captions are given in one of

    metadata.jsonl      a line {"file_name": "a.png", "text": "a handwritten seven"} for each image
    metadata.csv        columns file_name and text
    a.txt               beside a.png, where there is no metadata file

Every image then needs a caption, and every name in the metadata an image.
"""

import csv
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from progdist._utils.digest import digest_of_files
from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.words import counted, listed
from progdist.data.images import CaptionedImages, Images, ImageTransform, Reader, captioned
from progdist.data.labels import class_names, number_classes
from progdist.data.pictures import is_image, leads_to, open_image, suffixes
from progdist.data.splits import seeming_parts, training_part

METADATA, COLUMNS = ("metadata.jsonl", "metadata.csv"), ("file_name", "text")
"""The files that name images and their captions, and their columns."""


@dataclass(frozen=True)
class PathTable:
    """The paths of many files, sorted by their parts: folders, each file's folder, all names, and where each ends.

    `passed` counts the entries that were skipped, by suffix or kind.
    """

    root: str
    folders: list[str]
    folder_of: NDArray[np.int32]
    names: bytes
    ends: NDArray[np.int64]
    passed: Mapping[str, int]

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
    folder_of, ends, names, passed = array("i"), array("q"), bytearray(), Counter[str]()
    for folder, name in _image_files(str(root), frozenset(), passed):
        if not folders or folders[-1] != folder:  # a folder comes again if files follow those of a folder within
            folders.append(folder)
        names += os.fsencode(name)
        folder_of.append(len(folders) - 1)
        ends.append(len(names))
    arrays = np.array(folder_of, np.int32), bytes(names), np.array(ends, np.int64)
    return PathTable(str(root), folders, *arrays, passed)


def _image_files(folder: str, above: frozenset[str], passed: Counter[str]) -> Iterator[tuple[str, str]]:
    """(folder, name) of every image file, sorted by the parts of its path; other entries are counted in `passed`."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains it
        return
    within: set[str] = set()
    names: list[str] = []
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in suffixes() and leads_to(entry.is_dir):
            within.add(entry.name)
        elif not is_image(entry):
            passed[_kind(entry, suffix)] += 1
            continue
        names.append(entry.name)
    for name in sorted(names):
        if name in within:
            yield from _image_files(os.path.join(folder, name), above | {real}, passed)
        else:
            yield folder, name


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror}): make it readable, or remove it") from error


def _kind(entry: os.DirEntry[str], suffix: str) -> str:
    """The kind of a skipped entry, in a word or two."""
    if leads_to(entry.is_file):
        return suffix or "without suffix"
    if leads_to(entry.is_dir):
        return "folders named as images"
    return "special files" if os.path.exists(entry.path) else "links to nothing"


@dataclass(frozen=True)
class ImageFiles(Reader):
    """Image files, opened when read."""

    paths: PathTable

    def _source(self) -> str:
        return digest_of_files(Path(self.paths.root), (self.paths[index] for index in range(len(self.paths))))

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """The opened file."""
        path = self.paths[index]
        return open_image(path, str(path))


def open_folder(path_text: str, transform: ImageTransform) -> Images:
    """The images of a folder; class folders give labels, a flat folder gives none."""
    name = f"folder:{path_text}"
    paths, within, notes = _training_paths(name, _existing("folder", path_text))
    classes = set(within) - {os.curdir}
    if seeming := seeming_parts(sorted(classes)):
        notes += (f"warning: {name}: {listed(seeming)} is read as a class: if it is a split, give its folder",)
    numbers = number_classes(classes)
    labels = np.array([numbers.get(class_name, -1) for class_name in within], np.int64)[paths.folder_of]
    if classes and (flat := int((labels < 0).sum())):
        raise UserError(f"{name} has {counted(flat, 'image')} next to class folders: move them into class folders")
    values = torch.from_numpy(labels) if classes else None
    notes += passed_over(name, paths)
    return Images(name, len(paths), ImageFiles(transform, paths), values, class_names(numbers), notes=notes)


def passed_over(name: str, paths: PathTable, beside: Collection[str] = ()) -> tuple[str, ...]:
    """A line about skipped files, except those that belong to the images; empty if there are none."""
    passed = {kind: number for kind, number in paths.passed.items() if kind not in beside}
    most = ", ".join(
        f"{number} {kind}" for kind, number in sorted(passed.items(), key=lambda item: (-item[1], item[0]))[:9]
    )
    if not passed:
        return ()
    count = sum(passed.values())
    what = "is not an image" if count == 1 else "are not images"
    return (f"{name}: skipped {counted(count, 'file')} that {what} ({most})",)


def open_captions(path_text: str, transform: ImageTransform) -> CaptionedImages:
    """The images of a folder with their captions."""
    name, root = f"captions:{path_text}", _existing("captions", path_text)
    if any((root / metadata).is_file() for metadata in METADATA):
        paths, notes = index_folder(root), ()
    else:
        paths, _, notes = _training_paths(name, root)
    captions = read_captions(Path(paths.root), [paths[index] for index in range(len(paths))])
    notes += passed_over(name, paths, (".txt", ".jsonl", ".csv"))
    return captioned(name, ImageFiles(transform, paths), captions, notes)


def _training_paths(name: str, root: Path) -> tuple[PathTable, list[str], tuple[str, ...]]:
    """The paths of a folder's images, or of those in its `train/`; the class folder of each folder; and a note."""
    paths = index_folder(root)
    below = [Path(os.path.relpath(folder, root)).parts or (os.curdir,) for folder in paths.folders]
    parts = sorted({folder[0] for folder in below})
    part = training_part(parts, name)
    if part is None and len(parts) == 1 and training_part(sorted({(*folder, os.curdir)[1] for folder in below}), name):
        return _training_paths(name, root / parts[0])
    if part is None:
        return paths, [folder[0] for folder in below], ()
    others = f", not those of {listed([each for each in parts if each != part])}" if len(parts) > 1 else ""
    paths, within, _ = _training_paths(name, root / part)
    return paths, within, (f"{name}: the images of {part}/ are read{others}",)


def _existing(scheme: str, path_text: str) -> Path:
    root = local_path(path_text)
    if not root.is_dir():
        kind = "images with captions" if scheme == "captions" else "images"
        raise UserError(f"{scheme}:{path_text} is not a folder: give the path of a folder of {kind}")
    return root


def read_captions(folder: Path, images: Sequence[Path]) -> list[str]:
    """The caption of each image in a folder, from one of METADATA or a text file next to each image.

    Raises:
        UserError: an image has no caption, a caption has no image, or a file cannot be read.
    """
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{folder} has both {' and '.join(METADATA)}: remove one of them")
    if metadata:
        texts = {folder / name: text for name, text in _listed(metadata[0])}
    else:
        texts = {image: _content(text) for image in images if (text := image.with_suffix(".txt")).is_file()}
    if lost := sorted(texts.keys() - set(images)):
        raise UserError(
            f"{metadata[0]} names {lost[0]}, which is not an image there ({len(lost)} of {len(texts)} are not): "
            "restore the files, or remove their lines"
        )
    captions = [texts.get(image, "").strip() for image in images]
    if missing := [image for image, caption in zip(images, captions, strict=True) if not caption]:
        source = metadata[0] if metadata else f"{' or '.join(METADATA)}, or a .txt next to each image"
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
                f"{metadata}, line {number} has {columns}, expected {' and '.join(COLUMNS)} as text: add {missing[0]}"
            )
        name, text = (row[column] for column in COLUMNS)
        if name in seen:
            raise UserError(f"{metadata}, line {number} names {name} again: remove one of its captions")
        seen.add(name)
        yield name, text


def _json_lines(metadata: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    for number, line in enumerate(_content(metadata).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{metadata}, line {number} is not JSON ({error}): fix it") from error
        if not isinstance(row, dict):
            raise UserError(f"{metadata}, line {number} holds a {type(row).__name__}, expected an object: fix it")
        yield number, row


def _table(metadata: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        yield from enumerate(csv.DictReader(io.StringIO(_content(metadata), newline="")), 2)
    except csv.Error as error:
        raise UserError(f"{metadata} is not a CSV file ({error}): fix it") from error


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): restore it as UTF-8") from error
