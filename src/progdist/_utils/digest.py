"""Short digests of values, arrays and files, the keys of caches."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def digest(*parts: object) -> str:
    """Return 32 hexadecimal digits, from the contents of arrays and tensors and the `repr` of other values."""
    found = hashlib.sha256()
    for part in parts:
        array = part.detach().cpu().contiguous().numpy() if isinstance(part, Tensor) else part
        if isinstance(array, np.ndarray):
            _add_array(found, array)
        else:
            found.update(f"{part!r}\n".encode())
    return found.hexdigest()[:32]


def digest_of_files(root: Path, files: Iterable[Path]) -> str:
    """Digest files by their relative paths, sizes and modification times, without reading them."""
    found = hashlib.sha256()
    for file in files:
        state = file.stat()
        found.update(os.fsencode(os.path.relpath(file, root)))
        found.update(f"\0{state.st_size} {state.st_mtime_ns}\n".encode())
    return found.hexdigest()[:32]


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """Digest a network's weights by name and content."""
    return digest(*(each for name in sorted(state) for each in (name, state[name].float())))


def _add_array(found: Any, array: NDArray[Any]) -> None:  # noqa: ANN401  (hashlib's own type has no name)
    found.update(f"{array.shape} {array.dtype}\n".encode())
    for row in array if array.ndim > 1 else array[None]:  # row by row, to avoid a copy of the whole array
        found.update(np.ascontiguousarray(row))
