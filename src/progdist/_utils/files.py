"""Files written atomically, and JSON and safetensors read with their damage explained; never a pickle.

A file is written under a temporary name, flushed to the disk, and renamed; a reader sees the old one or the new one.
Every writer has a temporary name of its own, so that of two at once the last to rename wins.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from progdist._utils.errors import UserError

FORMAT_VERSION = 1  # of progdist.json, of checkpoints and of records


def check_format(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a file whose `format_version` is missing, no positive whole number, or later than FORMAT_VERSION."""
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path}: format_version is {str(version)[:50]!r}, expected a whole number: restore the file")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, and this progdist reads up to {FORMAT_VERSION}: upgrade progdist"
        )


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written."""
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


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401  (whatever JSON can hold)
    """Write JSON, readable by people."""
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; a UserError where it is missing or damaged."""
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a UserError where it is missing or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file or remove its folder") from error
