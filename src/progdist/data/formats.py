"""Binary files of images, as their publishers lay them out, read as arrays of bytes.

Every length is checked against the file itself before anything is made of it; a damaged file is a UserError.
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


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of one MNIST-format file (bytes only), gzipped or not."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the file again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path} is no idx file of bytes: expected the MNIST format")
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if data.size != int(np.prod(shape, dtype=object)):
        raise UserError(f"{path} holds {data.size} bytes where its header says {shape}: fetch the file again")
    return data.reshape(shape)


def read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The arrays `images` and `labels`, or `arr_0` and `arr_1`, of an npz file; the second need not be there.

    Whatever numpy and zipfile raise of damaged files is raised; no array is larger than what the file holds of it.
    """
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        images, labels = ("arr_0.npy", "arr_1.npy") if "arr_0.npy" in names else ("images.npy", "labels.npy")
        return _array(file, images), _array(file, labels) if labels in names else None


def _array(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, whose header is believed only if as many bytes follow it."""
    content = file.read(name)
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    count = math.prod(shape)
    if dtype.hasobject or count < 0 or count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} says that it is {shape} of {dtype}, but holds {len(content)} bytes")
    flat = np.frombuffer(content, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def read_cifar(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The training images (N, 32, 32, 3) and labels (N,) of CIFAR-10, binary or python version.

    An image is 3,072 bytes, channel by channel (www.cs.toronto.edu/~kriz/cifar.html).
    """
    paths = sorted(folder.glob("data_batch_*"))
    if not paths:
        raise UserError(
            f"{folder} holds no data_batch_1 (or data_batch_1.bin) of CIFAR-10: fetch it from "
            "www.cs.toronto.edu/~kriz/cifar.html, or use hub:uoft-cs/cifar10"
        )
    parts = [_binary_batch(path) if path.suffix == ".bin" else _python_batch(path) for path in paths]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _binary_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (N, 3072) and labels (N,): records of a label and its pixels."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size == 0 or content.size % 3073:
        raise UserError(f"{path} holds {content.size} bytes, no multiple of a record's 3073: fetch the file again")
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
        raise UserError(f"{path} is no python batch of CIFAR-10 ({error}): fetch the file again") from error
    if not labels or pixels.size != 3072 * classes.size:
        raise UserError(
            f"{path} holds {pixels.size} bytes of pixels for {classes.size} labels, expected 3072 each: fetch it again"
        )
    return pixels.reshape(-1, 3072), classes
