"""Checkpoints of one model's training: the last few, each with its checksum.

The tensors are written first, and last the JSON file that makes them valid, so a checkpoint is whole or absent.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION, LaterFormat, atomic_write, check_format, read_json, write_json


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to resume a stage: the number of updates, tensors by name, and numbers."""

    update: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` checkpoints of one stage; only a run's first process `writes`."""

    folder: Path
    keep: int = 2
    writes: bool = True

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete the oldest; the JSON file is written last and makes it valid.

        Checkpoints of later updates could not be read, so training resumed from before them; they are deleted, too.
        """
        if not self.writes:
            return
        path = self._path(checkpoint.update)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        content = safetensors.torch.save(tensors)
        atomic_write(path, content)
        metadata = {"format_version": FORMAT_VERSION, "update": checkpoint.update, "bytes": len(content)}
        metadata |= {"sha256": hashlib.sha256(content).hexdigest(), "numbers": dict(checkpoint.numbers)}
        write_json(path.with_suffix(".json"), metadata)
        for update in [each for each in self._updates() if each <= checkpoint.update][: -self.keep]:
            self._path(update).with_suffix(".json").unlink()
            self._path(update).unlink(missing_ok=True)
        for partial in self.folder.glob(".*.partial"):  # left by a process that was killed while writing
            partial.unlink(missing_ok=True)

    def latest(self, notify: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
        """The newest whole checkpoint, or None; `notify` is called for damaged ones.

        Raises:
            LaterFormat: it has a later format; ignoring it would restart training.
        """
        for update in reversed(self._updates()):
            try:
                return self.at(update)
            except LaterFormat:
                raise
            except UserError as error:
                notify(f"{error}: falling back to the previous one")
        return None

    def at(self, update: int) -> Checkpoint:
        """The checkpoint of one update. Raise a UserError if it is missing, damaged, or has a later format."""
        path = self._path(update)
        metadata = read_json(path.with_suffix(".json"))
        check_format(metadata, path.with_suffix(".json"))
        try:
            content = path.read_bytes()
            if (len(content), hashlib.sha256(content).hexdigest()) != (metadata["bytes"], metadata["sha256"]):
                raise UserError(f"checkpoint {path} is not what was written")
            return Checkpoint(update, safetensors.torch.load(content), dict(metadata["numbers"]))
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"checkpoint {path} cannot be read ({error})") from error

    def clear(self) -> None:
        """Delete all checkpoints, once their training is finished."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def latest_path(self) -> Path | None:
        """The path of the newest checkpoint, or None."""
        update = self.latest_update()
        return self._path(update) if update else None

    def latest_update(self) -> int:
        """The update of the newest checkpoint, 0 if there is none."""
        return max(self._updates(), default=0)

    def _path(self, update: int) -> Path:
        return self.folder / f"{update:08d}.safetensors"

    def _updates(self) -> list[int]:
        names = (path.stem for path in self.folder.glob("*.json"))
        return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name))
