"""Short digests of values, arrays and files, by which a cache knows what it was made of."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def digest(*parts: object) -> str:
    """32 hexadecimal digits: of arrays and tensors by their contents, of other values by their `repr`."""
    found = hashlib.sha256()
    for part in parts:
        array = part.detach().cpu().contiguous().numpy() if isinstance(part, Tensor) else part
        if isinstance(array, np.ndarray):
            _add_array(found, array)
        else:
            found.update(f"{part!r}\n".encode())
    return found.hexdigest()[:32]


def digest_of_files(root: Path, files: Iterable[Path]) -> str:
    """The digest of files by their names in a folder, sizes and times of change, which reads none of them."""
    found = hashlib.sha256()
    for file in files:
        state = file.stat()
        found.update(os.fsencode(os.path.relpath(file, root)))
        found.update(f"\0{state.st_size} {state.st_mtime_ns}\n".encode())
    return found.hexdigest()[:32]


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """The digest of a network's weights by their names and contents."""
    return digest(*(each for name in sorted(state) for each in (name, state[name].float())))


def _add_array(found: Any, array: NDArray[Any]) -> None:  # noqa: ANN401  (hashlib's own type has no name)
    found.update(f"{array.shape} {array.dtype}\n".encode())
    for row in array if array.ndim > 1 else array[None]:  # a row at a time: no copy of all of it
        found.update(np.ascontiguousarray(row))
