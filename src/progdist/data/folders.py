"""A folder of image files, indexed in one pass and kept in a few bytes a file.

The names of all files are one string of bytes, with where each ends and the folder that it is in: about 20 bytes a file
beside its name, so that 1.2 million files take 50 MB, shared by all workers.
"""

import os
import struct
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.captions import read_captions
from progdist.data.images import SUFFIXES, CaptionedImages, Images, ImageTransform, Reader

UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises of damaged files."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class PathTable:
    """The paths of many files, in the order of their parts.

    Attributes:
        folders: every folder that holds one.
        folder_of: the index of each file's folder, int32 (N,).
        names: all file names, one after the other.
        ends: where each name ends, int64 (N,).
    """

    folders: list[str]
    folder_of: NDArray[np.int32]
    names: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of files."""
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
    return PathTable(
        folders, np.frombuffer(folder_of, np.int32).copy(), bytes(names), np.frombuffer(ends, np.int64).copy()
    )


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
    """Image files, opened when they are asked for."""

    paths: PathTable

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1]; errors as in `size`."""
        return self._read(index, lambda image: self.transform(image, place))

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, of which only the header is read.

        Raises:
            UserError: the file is no image.
        """
        return self._read(index, lambda image: image.size)

    def _read(self, index: int, use: Callable[[Image.Image], Found]) -> Found:
        path = self.paths[index]
        try:
            bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
            with bombs, Image.open(path) as image:
                return use(image)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read as an image ({error}): fix or remove it") from error


def open_folder(path_text: str, transform: ImageTransform) -> Images:
    """The images of a folder; class folders give labels, a flat folder gives none.

    Raises:
        UserError: no such folder, or images beside class folders.
    """
    root = Path(path_text).expanduser()
    if not root.is_dir():
        raise UserError(f"folder:{path_text} is no folder: give the path of a folder of images")
    paths = index_folder(root)
    classes = [os.path.relpath(folder, root).split(os.sep)[0] for folder in paths.folders]
    names = tuple(sorted(set(classes) - {os.curdir}))
    numbers = {name: number for number, name in enumerate(names)} | {os.curdir: -1}
    class_of_folder = np.array([numbers[name] for name in classes], np.int64)
    labels = class_of_folder[paths.folder_of]
    if names and (flat := int((labels < 0).sum())):
        raise UserError(f"folder:{path_text} holds {flat} images beside class folders: move them into class folders")
    known = torch.from_numpy(labels) if names else None
    return Images(f"folder:{path_text}", len(paths), ImageFiles(transform, paths), known, names)


def open_captions(path_text: str, transform: ImageTransform) -> CaptionedImages:
    """The images of a folder with their captions (see `progdist.data.captions`).

    Raises:
        UserError: no such folder, or images and captions that do not go together.
    """
    root = Path(path_text).expanduser()
    if not root.is_dir():
        raise UserError(f"captions:{path_text} is no folder: give the path of a folder of images with captions")
    paths = index_folder(root)
    captions = read_captions(root, [paths[index] for index in range(len(paths))])
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([numbers[caption] for caption in captions]) if captions else None
    return CaptionedImages(f"captions:{path_text}", len(paths), ImageFiles(transform, paths), labels, tuple(numbers))
