"""Atomic file writes, and reads of JSON and safetensors that explain damage; never a pickle.

A file is written under a temporary name, flushed to disk and renamed; readers see either the old file or the new one.
Each writer uses its own temporary name, so the last of two concurrent writers wins.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progdist._utils.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and paths and JSON do not need it
    from torch import Tensor

FORMAT_VERSION = 1  # of progdist.json, of checkpoints and of records
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # suffixes of files that can run code when they are read


class LaterFormat(UserError):
    """A file written by a later version of progdist."""


def check_format(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a file whose `format_version` is missing, not a positive integer, or newer (`LaterFormat`)."""
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path}: format_version is {str(version)[:50]!r}, expected a whole number: restore the file")
    if version > FORMAT_VERSION:
        raise LaterFormat(
            f"{path} has format version {version}, and this progdist reads up to {FORMAT_VERSION}: upgrade progdist"
        )


def local_path(text: str | Path) -> Path:
    """Return the path if it exists, else expand `~`, which a shell does not do in `folder:~/data`."""
    path = Path(text)
    try:
        return path if os.path.lexists(path) else path.expanduser()
    except (RuntimeError, ValueError):  # no such user, or a null character
        return path


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically: no reader sees it half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Write indented JSON."""
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raise a UserError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore the file or remove its folder") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a JSON object: restore the file")
    return content


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read the tensors of a safetensors file. Raise a UserError where it is missing or damaged."""
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file or remove its folder") from error


def check_tensors_finite(weights: Mapping[str, "Tensor"], where: Path) -> None:
    """Refuse weights that contain a NaN or an infinity."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            wrong = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{where}: {wrong:,} of the {tensor.numel():,} values of {name[:100]} are not finite: restore the "
                "weights, or save them again in float32"
            )


def own_files(folder: Path, part: str) -> list[Path]:
    """List the files in one part of a folder, which may be copied and shared.

    Links that lead out of the folder are refused, except those of the Hugging Face cache, from
    `models--OWNER--NAME/snapshots/REVISION/` into `models--OWNER--NAME/blobs/`.
    """
    root = folder.resolve()
    repository = root.parent.parent
    cached = root.parent.name == "snapshots" and repository.name.startswith("models--")
    within = (root, repository / "blobs") if cached else (root,)
    files: list[Path] = []
    for path in (folder / part, *sorted((folder / part).rglob("*"))):
        target = path.resolve()
        if not any(target.is_relative_to(allowed) for allowed in within):
            raise UserError(
                f"{path} is a link to {target}, outside {folder}, and would be copied into every student: replace it "
                "with the files themselves"
            )
        if path.is_file():
            files.append(path)
        elif not path.is_dir():
            raise UserError(f"{path} is neither a file nor a folder: remove it or restore it")
    return files
