"""Binary image files in their publishers' formats, read as arrays of bytes.

Every length is checked against the file itself before memory is allocated; a damaged file is a UserError.
"""

import gzip
import io
import math
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from progdist._utils.errors import UserError

OVERSHOT = 0.05  # how far values may exceed the range of pixels, as bicubic resampling does at edges
FREE, RATIO = 2**28, 100  # bytes that any file may unpack to, and the largest ratio for larger ones


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read the array of one MNIST-format file (bytes only), gzipped or not."""
    try:
        content = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the file again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path} is not an idx file of bytes, expected the MNIST format: fetch the file again")
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if data.size != int(np.prod(shape, dtype=object)):
        raise UserError(f"{path} holds {data.size} bytes, but its header says {shape}: fetch the file again")
    return data.reshape(shape)


def _unpacked(path: Path) -> bytes:
    """Unpack a gzipped file. Raise a UserError if it is larger than images can be."""
    most = most_unpacked(path.stat().st_size)
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} unpacks to more than {most:,} bytes, too many for images: fetch the file again")
    return content


def most_unpacked(packed: int) -> int:
    """The most bytes accepted from unpacking this many: deflate can make 1,032 of one, images compress far less."""
    return max(FREE, RATIO * packed)


def read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The arrays `images` and `labels`, or `arr_0` and `arr_1`, of an npz file; labels are optional.

    Errors of numpy and zipfile for damaged files are raised as they are. No array may exceed the bytes in the file.
    """
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        images, labels = ("arr_0.npy", "arr_1.npy") if "arr_0.npy" in names else ("images.npy", "labels.npy")
        return _array(file, images), _array(file, labels) if labels in names else None


def _array(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, whose header is accepted only if as many bytes follow it."""
    packed, unpacked = file.getinfo(name).compress_size, file.getinfo(name).file_size
    if unpacked > (most := most_unpacked(packed)):
        raise ValueError(f"{name} unpacks to {unpacked:,} bytes, expected at most {most:,}")
    content = file.read(name)
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    count = math.prod(shape)
    if dtype.hasobject or count < 0 or count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"the header of {name} says {shape} of {dtype}, but it holds {len(content)} bytes")
    flat = np.frombuffer(content, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def in_range(name: str, images: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Images (N, ...) of uint8, or floats, clipped to [-1, 1] if a resampling overshot, and a line about that.

    Raise a UserError for another range, and for values that are not finite, naming the first such image.
    """
    if not images.size:
        return images, ()
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(low + high):
        first = next(index for index, image in enumerate(images) if not np.isfinite(image).all())
        raise UserError(f"{name}: image {first} has values that are not finite: fix or remove it")
    if images.dtype != np.uint8:
        check_scale(f"{name}: images are {images.dtype}", low, high)
    elif (low, high) == (0, 1):
        raise UserError(f"{name}: images hold only 0 and 1, expected uint8 from 0 to 255: multiply them by 255")
    if images.dtype == np.uint8 or (low >= -1 and high <= 1):
        return images, ()
    beyond = int((np.abs(images) > 1).sum())
    note = f"{name}: {beyond:,} of {images.size:,} values are beyond [-1, 1], from {low:g} to {high:g}: clipped"
    return images.clip(-1, 1), (note,)


def seems_unit(low: float, high: float) -> bool:
    """Whether values from `low` to `high` look like pixels from 0 to 1, possibly overshot by a resampling."""
    return 0 <= low < high <= 1 or (low >= -OVERSHOT and 0.5 < high <= 1 + OVERSHOT and low < high)


def check_scale(images: str, low: float, high: float) -> None:
    """Refuse floats whose range `low` to `high` is not about -1 to 1; with no negative value, black is not -1."""
    held = f"{images} from {low:g} to {high:g}, expected floats in [-1, 1]"
    if low == high and abs(low) <= 1:  # constant images have no range to check
        return
    if seems_unit(low, high):
        raise UserError(f"{held}: give 2 * images - 1")
    if low >= 0 and 1 + OVERSHOT < high <= 255:
        raise UserError(f"{held}: give images / 127.5 - 1")
    if low < -1 - OVERSHOT or high > 1 + OVERSHOT:
        raise UserError(f"{held}: scale them")


def read_cifar(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The training images (N, 32, 32, 3) and labels (N,) of CIFAR-10, binary or python version.

    An image is 3,072 bytes, channel by channel (www.cs.toronto.edu/~kriz/cifar.html).
    """
    paths = sorted(folder.glob("data_batch_*"))
    if not paths:
        raise UserError(
            f"{folder} has no data_batch_1 (or data_batch_1.bin) of CIFAR-10: fetch it from "
            "www.cs.toronto.edu/~kriz/cifar.html, or use hub:uoft-cs/cifar10"
        )
    parts = [_binary_batch(path) if path.suffix == ".bin" else _python_batch(path) for path in paths]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _binary_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (N, 3072) and labels (N,) from records of a label and its pixels."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size == 0 or content.size % 3073:
        raise UserError(f"{path} holds {content.size} bytes, not a multiple of 3073 (a record): fetch the file again")
    records = content.reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _python_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (N, 3072) and labels (N,) of a pickle that is never run: its opcodes are read as data."""
    labels: list[int] = []
    longest: str | bytes = b""
    sought = inside = False
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if isinstance(argument, str | bytes):
                sought, inside = argument in ("labels", b"labels") or (sought and argument == "latin1"), False
                longest = max(longest, argument, key=len)
            elif sought and opcode.name == "EMPTY_LIST":
                sought, inside = False, True
            elif inside and isinstance(argument, int) and opcode.name.startswith("BININT"):
                labels.append(argument)
        data = longest.encode("latin-1") if isinstance(longest, str) else longest
        pixels, classes = np.frombuffer(data, np.uint8), np.array(labels, dtype=np.uint8)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a python batch of CIFAR-10 ({error}): fetch the file again") from error
    if not labels or pixels.size != 3072 * classes.size:
        raise UserError(
            f"{path} holds {pixels.size} bytes of pixels for {classes.size} labels, expected 3072 each: fetch it again"
        )
    return pixels.reshape(-1, 3072), classes
