"""Binary files of images, as their publishers lay them out, read as arrays of bytes.

Every length is checked against the file itself before anything is made of it.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from progdist._errors import UserError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of one MNIST-format file (bytes only), gzipped or not.

    Raises:
        UserError: not such a file, or shorter than its header says.
    """
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


def read_cifar(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 50,000 training images (N, 32, 32, 3) and labels (N,) of CIFAR-10's binary version.

    Each record is a label and 3,072 bytes, channel by channel (www.cs.toronto.edu/~kriz/cifar.html). The python version
    holds pickles, which can run code, and is not read.

    Raises:
        UserError: no such files, the python version, or a file of another length.
    """
    paths = sorted(folder.glob("data_batch_*.bin"))
    if not paths:
        pickled = any(folder.glob("data_batch_*"))
        held = "the python version (pickles, which are not read)" if pickled else "nothing of it"
        raise UserError(
            f"{folder} should hold data_batch_1.bin ... data_batch_5.bin of CIFAR-10, it holds {held}: fetch the "
            "binary version, or use hub:uoft-cs/cifar10"
        )
    records = []
    for path in paths:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        if content.size == 0 or content.size % 3073:
            raise UserError(f"{path} holds {content.size} bytes, no multiple of a record's 3073: fetch the file again")
        records.append(content.reshape(-1, 3073))
    joined = np.concatenate(records)
    return joined[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), joined[:, 0]
