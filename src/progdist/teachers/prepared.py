"""A teacher that is prepared first: a single-file checkpoint, or a pipeline with LoRA files fused into it.

Both become an ordinary folder, which is then opened like any teacher. Stock code writes it, completely or not at all;
parts of a pipeline that no LoRA file changes are copied byte for byte. `prepared.json` next to the parts records the
source files by size, modification time and SHA-256, so that it is made again only if they differ.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from progdist._utils.errors import UserError
from progdist._utils.files import (
    FORMAT_VERSION,
    PICKLES,
    check_format,
    checksum,
    local_path,
    own_files,
    read_json,
    write_json,
)
from progdist._utils.lora_files import lora_file
from progdist.models.components import PipelineFolder
from progdist.teachers.base import CARD, hub_name
from progdist.teachers.lora_files import fuse
from progdist.teachers.open import RECORD, resolve_folder
from progdist.teachers.single_file import check_checkpoint, open_single_file

SINGLE_FILES = (".safetensors", *PICKLES)
"""Suffixes of checkpoints: among them pickles, which are refused with a reason."""


@dataclass(frozen=True)
class Source:
    """A teacher as given: a folder, `hub:OWNER/NAME` or a single-file checkpoint, with what belongs to it."""

    model: str
    loras: Sequence[str] = ()  # LoRA files, FILE[:weight], fused in this order
    config: str | None = None  # for a checkpoint: the folder of its configs

    @property
    def single_file(self) -> bool:
        """Whether it is a single-file checkpoint."""
        return Path(self.model).suffix in SINGLE_FILES and not local_path(self.model).is_dir()

    @property
    def needs_preparing(self) -> bool:
        """Whether a folder must be made from it before it is opened."""
        return bool(self.loras) or self.single_file

    def in_words(self) -> str:
        """Its description in messages."""
        return f"{self.model} with {', '.join(self.loras) or self.config or 'no LoRA files'}"

    def check(self) -> None:
        """Refuse options without effect, missing files, and pickles; nothing is opened.

        Raises:
            UserError: what was given, and what to give instead.
        """
        if self.config is not None and not self.single_file:
            raise UserError(f"--config applies only to a single-file checkpoint, got {self.model}: remove it")
        if self.single_file:
            check_checkpoint(local_path(self.model))
            if self.config is None:
                raise UserError(
                    f"{self.model} is a single-file checkpoint: add --config FOLDER, a diffusers folder of the same "
                    "family, with configs, tokenizers and scheduler"
                )
        for path in map(local_path, (lora_file(text).path for text in self.loras)):
            if not path.is_file():
                raise UserError(f"{path} is not a file, expected LoRA weights: give FILE.safetensors[:weight]")


def prepare(source: Source, place: Path) -> Path:
    """Make a teacher's folder at `place`, which must not exist; return it.

    Raises:
        UserError: as in `Source.check`; or the teacher, a LoRA file or the configs are damaged, or do not fit.
        OSError: it cannot be written.
    """
    source.check()
    inputs = _inputs(source)
    pipeline, origin = _open(source)
    changed = fuse(pipeline, [lora_file(text) for text in source.loras]) if source.loras else []
    partial = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        if origin is None:
            pipeline.save_pretrained(partial, safe_serialization=True)
        else:
            _copy(origin, partial, without=changed)
            for part in changed:
                getattr(pipeline, part).save_pretrained(partial / part, safe_serialization=True)
        loras = [[Path(each.path).name, each.weight] for each in map(lora_file, source.loras)]
        name = hub_name(source.model, origin.path) if origin else None
        content = {"model": name or Path(source.model).name, "loras": loras, "files": _recorded(inputs)}
        write_json(partial / RECORD, {"format_version": FORMAT_VERSION, **content})
        _appear(partial, place)
    except safetensors.SafetensorError as error:  # its writer's error for a full disk
        raise OSError(errno.EIO, " ".join(str(error).split()), str(place)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _appear(partial: Path, place: Path) -> None:
    """Rename the finished folder, or keep one that another process has made meanwhile."""
    try:
        partial.replace(place)
    except OSError:
        if not (place / RECORD).is_file():
            raise


def differs(source: Source, place: Path) -> str:
    """How a teacher differs from the one that a folder was made from; "" if it does not.

    A file that was only copied or touched does not differ. Raises: UserError: as in `Source.check`, or `prepare` did
    not make the folder.
    """
    source.check()
    if not (place / RECORD).is_file():
        raise UserError(f"{place} is not a teacher made by progdist: choose another --out")
    record = read_json(place / RECORD)
    check_format(record, place / RECORD)
    loras = [[Path(each.path).name, each.weight] for each in map(lora_file, source.loras)]
    if record.get("loras") != loras:
        return f"its LoRA files, {_listed(record.get('loras'))} there and {_listed(loras)} here"
    files, inputs = record.get("files"), _inputs(source)
    if not isinstance(files, Mapping):
        raise UserError(f"{place / RECORD} is damaged (files is {str(files)[:50]}): remove {place}")
    if odd := sorted(files.keys() ^ inputs.keys()):
        return str(odd[0])
    return next((name for name, path in inputs.items() if not _same(files[name], path)), "")


def _open(source: Source) -> tuple[Any, PipelineFolder | None]:
    """The stock pipeline with all of its weights, and its folder; None for a single file."""
    if source.single_file:
        return open_single_file(local_path(source.model), local_path(str(source.config))), None
    folder = PipelineFolder.read(_folder(source))
    return folder.open(folder.component(folder.network)), folder


def _folder(source: Source) -> Path:
    """The folder of a stock pipeline. Raise a UserError for any other."""
    folder = resolve_folder(source.model)
    if (folder / "progdist.json").is_file():
        raise UserError(f"--with-lora applies only to a stock pipeline, and {folder} is a progdist model: remove it")
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} has no model_index.json: give a folder made by a diffusers pipeline's save_pretrained"
        )
    return folder


def _copy(folder: PipelineFolder, target: Path, without: Iterable[str]) -> None:
    """Copy the index and the parts of a folder, except some, and pickles."""
    write_json(target / "model_index.json", dict(folder.index))
    if (folder.path / CARD).is_file():  # which names its licence
        shutil.copyfile(own_files(folder.path, CARD)[0], target / CARD)
    for part in set(folder.parts) - set(without):
        for file in own_files(folder.path, part) if (folder.path / part).exists() else ():
            if file.suffix not in PICKLES:
                copy = target / file.relative_to(folder.path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def _inputs(source: Source) -> dict[str, Path]:
    """The files that a teacher is made from, by names that do not depend on their location."""
    named: dict[str, Path] = {}
    if source.single_file:
        named["checkpoint"] = local_path(source.model)
        roots = {"config": local_path(str(source.config))}
    else:
        roots = {"model": _folder(source)}
    for kind, root in roots.items():
        if not (root / "model_index.json").is_file():
            raise UserError(f"--{kind} {root} has no model_index.json: give a diffusers folder of the same family")
        folder = PipelineFolder.read(root)
        files = [root / "model_index.json"]
        files += [file for part in folder.parts if (root / part).exists() for file in own_files(root, part)]
        kept = [file for file in files if file.suffix not in PICKLES]
        named |= {f"{kind}/{file.relative_to(root)}": file for file in kept}
    for number, text in enumerate(source.loras):
        named[f"lora {number}"] = local_path(lora_file(text).path)
    return named


def _recorded(inputs: Mapping[str, Path]) -> dict[str, list[Any]]:
    """Size, modification time and SHA-256 of each file."""
    return {name: [path.stat().st_size, path.stat().st_mtime_ns, checksum(path)] for name, path in inputs.items()}


def _same(recorded: Any, path: Path) -> bool:  # noqa: ANN401  (any JSON value)
    """Whether a file is the recorded one: untouched, or with the same content."""
    if not isinstance(recorded, list) or len(recorded) != 3:
        return False
    state = path.stat()
    return state.st_size == recorded[0] and (state.st_mtime_ns == recorded[1] or checksum(path) == recorded[2])


def _listed(loras: Any) -> str:  # noqa: ANN401  (any JSON value)
    return ", ".join(f"{each[0]}:{each[1]:g}" for each in loras or ()) or "none"
