"""Embeddings of captions: computed once, kept in half precision, mapped into memory.

    index.json              the captions per shard, and a digest of the captions and of their encoder
    00000.safetensors       the embeddings of the first shard, each (captions, ...)
    00001.safetensors ...

A shard is written as a whole or not at all, and existing shards are not computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_json, write_json

SHARD_BYTES = 2**28  # approximate size of a shard
TextEncoder = Callable[[Sequence[str]], dict[str, Tensor]]  # N prompts -> their embeddings by name, (N, ...) on the CPU


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in a folder of shards of `size` captions, looked up by caption number."""

    folder: Path
    size: int
    _opened: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, numbers: Tensor) -> dict[str, Tensor]:
        """The embeddings of captions (B,) int64 by name, (B, ...) in half precision. A damaged shard is a UserError."""
        rows = [self._row(*divmod(number, self.size)) for number in numbers.tolist()]
        with torch.autocast("cpu", enabled=False):  # on the CPU, autocast cannot stack half precision
            return {name: padded([row[name] for row in rows]) for name in rows[0]}

    def _row(self, shard: int, row: int) -> dict[str, Tensor]:
        path = self.path(shard)
        try:
            if shard not in self._opened:
                opened = safetensors.safe_open(path, framework="pt")
                self._opened[shard] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: rows[row] for name, rows in self._opened[shard].items()}
        except (OSError, IndexError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): remove {self.folder} to encode the captions again"
            ) from error

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard:05d}.safetensors"


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack tensors of the same rank, (N, ...), padding each axis with zeros to the longest."""
    sides = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]
    stacked = rows[0].new_zeros(len(rows), *sides)
    for place, row in zip(stacked, rows, strict=True):
        place[tuple(slice(length) for length in row.shape)] = row
    return stacked


def row_bytes(encoder: TextEncoder) -> int:
    """The bytes of one caption's embeddings in half precision."""
    return sum(2 * rows.numel() for rows in encoder([""]).values())


def encode_captions(
    captions: Sequence[str],
    encoder: Callable[[], TextEncoder],
    folder: Path,
    notify: Callable[[str], None],
    made_by: str = "",
) -> Embeddings:
    """Load the embeddings of distinct captions, numbered in order, from a folder, or compute and save them there.

    `encoder` opens the text encoders, and is not called if every shard exists; `notify` gets a line before.
    `made_by` identifies the encoders: embeddings by others, or of other captions, are computed again.

    Raises:
        UserError: the folder is damaged, or an embedding overflows half precision.
    """
    source, index, encode = digest(list(captions), made_by), folder / "index.json", None
    written: Mapping[str, Any] = read_json(index) if index.is_file() else {}
    if written.get("captions") != source or not isinstance(written.get("shard"), int) or written["shard"] < 1:
        encode = encoder()
        if others := list(folder.glob("[0-9]*.safetensors")):
            notify(f"{folder} held other captions or was made by other text encoders: encoding again")
        for file in (index, *others):
            file.unlink(missing_ok=True)
        written = {"captions": source, "shard": max(1, SHARD_BYTES // row_bytes(encode))}
        write_json(index, written)
    embeddings = Embeddings(folder, written["shard"])
    shards = range(-(-len(captions) // embeddings.size))
    if absent := [shard for shard in shards if not embeddings.path(shard).is_file()]:
        notify(f"{len(captions)} distinct captions are encoded once")
        encode = encode or encoder()
        for shard in absent:
            first = shard * embeddings.size
            encoded = encode(captions[first : first + embeddings.size])
            rows = {name: row.half() if row.is_floating_point() else row for name, row in encoded.items()}
            if not all(row.isfinite().all() for row in rows.values()):
                raise UserError(f"{folder}: the text encoder's output overflows half precision: use another one")
            atomic_write(embeddings.path(shard), safetensors.torch.save(rows))
    return embeddings
