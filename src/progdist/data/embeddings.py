"""The embeddings of captions: computed once, kept in half precision, mapped into memory.

    index.json              how many captions to a shard, and a digest of the captions and of what encoded them
    00000.safetensors       the embeddings of the first shard, each (captions, ...)
    00001.safetensors ...

A shard is written whole or not at all, and those that are there are not computed again.
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

SHARD_BYTES = 2**28  # about as much as a shard holds
TextEncoder = Callable[[Sequence[str]], dict[str, Tensor]]  # N prompts -> their embeddings by name, (N, ...) on the CPU


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in a folder of shards of `size` captions, by the numbers of their captions."""

    folder: Path
    size: int
    _opened: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, numbers: Tensor) -> dict[str, Tensor]:
        """The embeddings of captions (B,) int64 by name, (B, ...) in half precision; a damaged shard is a UserError."""
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
    """Tensors of one rank as one, (N, ...), shorter ones padded with zeros to the longest of each axis."""
    sides = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]
    stacked = rows[0].new_zeros(len(rows), *sides)
    for place, row in zip(stacked, rows, strict=True):
        place[tuple(slice(length) for length in row.shape)] = row
    return stacked


def row_bytes(encoder: TextEncoder) -> int:
    """What the embeddings of one caption take in half precision."""
    return sum(2 * rows.numel() for rows in encoder([""]).values())


def encode_captions(
    captions: Sequence[str],
    encoder: Callable[[], TextEncoder],
    folder: Path,
    notify: Callable[[str], None],
    made_by: str = "",
) -> Embeddings:
    """The embeddings of distinct captions, numbered by their places: from a folder, or made and put there.

    `encoder` opens the text encoders, and is not called where every shard is there; `notify` gets a line before.
    `made_by` identifies the encoders: embeddings of others, or of other captions, are made again.

    Raises:
        UserError: the folder is damaged, or an embedding is beyond half precision.
    """
    source, index, encode = digest(list(captions), made_by), folder / "index.json", None
    written: Mapping[str, Any] = read_json(index) if index.is_file() else {}
    if written.get("captions") != source or not isinstance(written.get("shard"), int) or written["shard"] < 1:
        encode = encoder()
        if others := list(folder.glob("[0-9]*.safetensors")):
            notify(f"{folder} was of other captions or other text encoders: made again")
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
                raise UserError(f"{folder}: the text encoder's output is beyond half precision: use another one")
            atomic_write(embeddings.path(shard), safetensors.torch.save(rows))
    return embeddings
