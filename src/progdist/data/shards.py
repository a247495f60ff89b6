"""Rows of one shape in shards on disk: written by many processes in any order, read by memory map.

A folder of shards holds `index.json`, with the number of rows in all and per shard, and `00000.safetensors`,
`00001.safetensors`, ... Each shard is whole or absent, so interrupted work resumes with the absent ones. Pages that are
read belong to the system's file cache, which shares them between processes and reclaims them when memory is short.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_json, read_tensors, write_json

INDEX = "index.json"


class TensorShards:
    """`count` rows of one shape, `rows` per shard (fewer in the last); `source` identifies their data."""

    def __init__(self, path: Path, count: int, rows: int, source: str = "") -> None:
        self.path, self.count, self.rows, self.source = path, count, rows, source
        self._mapped: dict[int, Tensor] = {}

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    @property
    def index(self) -> dict[str, int | str]:
        """The content of index.json."""
        return {"count": self.count, "rows": self.rows, "source": self.source}

    def spans(self) -> list[range]:
        """The rows of every shard."""
        return [range(start, min(start + self.rows, self.count)) for start in range(0, self.count, self.rows)]

    def agrees(self) -> bool:
        """Whether index.json exists and agrees. Raise a UserError if it is damaged."""
        return (self.path / INDEX).is_file() and read_json(self.path / INDEX) == self.index

    def begin(self) -> bool:
        """Prepare the folder for these rows: remove other shards, and return whether there were any."""
        if self.agrees():
            return False
        others = sorted(self.path.glob("[0-9]*.safetensors"))
        (self.path / INDEX).unlink(missing_ok=True)  # first: shards without an index belong to no data
        for file in others:
            file.unlink()
        self.write_index()
        return bool(others)

    def write_index(self) -> None:
        """Write index.json."""
        write_json(self.path / INDEX, self.index)

    def absent(self) -> list[int]:
        """The numbers of the missing shards."""
        return [number for number in range(len(self.spans())) if not self._file(number).is_file()]

    def write(self, number: int, parts: Iterable[Tensor]) -> None:
        """Write one shard, the concatenation of its parts, atomically."""
        atomic_write(self._file(number), safetensors.torch.save({"rows": torch.cat(list(parts)).contiguous()}))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        number, row = divmod(index, self.rows)
        return self.shard(number)[row]

    def read(self, rows: range) -> Tensor:
        """Consecutive rows, from one shard or several; raises as `shard` does."""
        numbers = range(rows.start // self.rows, (rows.stop - 1) // self.rows + 1)
        starts = [number * self.rows for number in numbers]
        shards = zip(starts, (self.shard(number) for number in numbers), strict=True)
        return torch.cat([shard[max(0, rows.start - start) : rows.stop - start] for start, shard in shards])

    def shard(self, number: int) -> Tensor:
        """The rows of one shard, mapped from its file. Raise a UserError if it is missing, damaged or too short."""
        if number not in self._mapped:
            file, expected = self._file(number), len(self.spans()[number])
            tensors = list(read_tensors(file).values())
            if len(tensors) != 1 or len(tensors[0]) != expected:
                rows = len(tensors[0]) if tensors and tensors[0].ndim else 0
                raise UserError(f"{file} has {rows} rows, expected {expected}: remove {self.path} to make it again")
            self._mapped[number] = tensors[0]
        return self._mapped[number]

    def _file(self, number: int) -> Path:
        return self.path / f"{number:05d}.safetensors"
