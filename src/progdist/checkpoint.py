"""Tensors and numbers on disk, whole or not at all: safetensors and JSON, never a pickle.

A file is written under a temporary name, flushed to the disk, and renamed; a reader sees the old one or the new one.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from progdist._errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401  (whatever JSON can hold)
    """Write JSON, readable by people."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing or damaged.
    """
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
    """The tensors of a safetensors file.

    Raises:
        UserError: missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file or remove its folder") from error


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on with a stage: after how many updates, tensors by name, and numbers."""

    update: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage, the last `keep` of them; read-only in all processes of a run but the first."""

    folder: Path
    keep: int = 2
    writes: bool = True

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one, then drop the oldest; the JSON file comes last and makes it count."""
        if not self.writes:
            return
        path = self.folder / f"{checkpoint.update:08d}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        content = safetensors.torch.save(tensors)
        write_whole(path, content)
        told = {"update": checkpoint.update, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_json(path.with_suffix(".json"), {**told, "numbers": dict(checkpoint.numbers)})
        for update in self._updates()[: -self.keep]:
            self._path(update).with_suffix(".json").unlink()
            self._path(update).unlink(missing_ok=True)

    def latest(self, say: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
        """The newest that is whole, or None; `say` is told of those that are not."""
        for update in reversed(self._updates()):
            try:
                return self.at(update)
            except UserError as error:
                say(f"{error}: the one before it is taken")
        return None

    def at(self, update: int) -> Checkpoint:
        """That of one update.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self._path(update)
        told = read_json(path.with_suffix(".json"))
        try:
            content = path.read_bytes()
            same = (len(content), hashlib.sha256(content).hexdigest()) == (told["bytes"], told["sha256"])
            if not same:
                raise UserError(f"checkpoint {path} is not what was written")
            return Checkpoint(update, safetensors.torch.load(content), dict(told["numbers"]))
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"checkpoint {path} cannot be read ({error})") from error

    def clear(self) -> None:
        """Remove them all: what they led to is finished."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def latest_path(self) -> Path | None:
        """Where the newest is, or None."""
        updates = self._updates()
        return self._path(updates[-1]) if updates else None

    def _path(self, update: int) -> Path:
        return self.folder / f"{update:08d}.safetensors"

    def _updates(self) -> list[int]:
        names = (path.stem for path in self.folder.glob("*.json"))
        return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name))
