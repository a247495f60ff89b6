"""Images that stream: shards are read from start to end, so the data need not fit on a disk.

The shards are distributed over the processes and the workers of each. Every reader walks through its own shards, epoch
after epoch, in a new order of shards per epoch, and shuffles examples through a buffer of BUFFER. What a reader sees is
a function of (seed, stage, number of readers); to resume at a later update it skips what earlier ones saw without
decoding it. A batch comes from one reader, and readers take turns.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.random import generator
from progdist._utils.words import counted
from progdist.data.images import Images, ImageTransform, Reader
from progdist.data.labels import read_labels
from progdist.data.pictures import open_image

BUFFER = 1000  # encoded examples from which a reader chooses the next
KEPT = 10_000  # examples at the start of a stream that stand for all of it in evaluation


class Example(NamedTuple):
    """The content of a shard for one image."""

    content: bytes  # the encoded image
    label: object  # what the shard says about its class; None if it says nothing
    name: str  # for messages


ReadShard = Callable[[str], Iterator[Example]]


class StreamedImages(Images):
    """Images that can only be read in the order of a stream, shard by shard.

    The first KEPT of them, kept as encoded bytes, stand for all where images are read by index: in evaluation, in the
    teacher's check, and for the proportions of the classes.
    """

    def __init__(
        self, name: str, shards: Sequence[str], read: ReadShard, transform: ImageTransform, classes: Sequence[str] = ()
    ) -> None:
        self.shards, self.read = list(shards), read
        kept = list(islice(self._once(self.shards), KEPT))
        self.known = known = read_labels([example.label for example in kept], lambda row: kept[row].name, classes)
        get = _Encoded(transform, kept)
        super().__init__(name, len(kept), get, known.values, known.names, notes=known.notes)

    def relabelled(self, labels: Tensor, names: tuple[str, ...]) -> Self:
        """As in `Images`."""
        other = super().relabelled(labels, names)
        other.known = self.known.relabelled(labels, names)
        return other

    def reframed(self, transform: ImageTransform) -> "StreamedImages":
        """The same stream under another transform."""
        return StreamedImages(self.name, self.shards, self.read, transform, self.known.names)

    def split(self, count: int, seed: int) -> tuple[Images, Images]:
        """Raise a UserError: a stream has no held-out part."""
        raise UserError(
            f"{self.name} is a stream, so {counted(count, 'image')} cannot be held out: remove distill.stop"
        )

    def walk(
        self, size: int, updates: range, rank: tuple[int, int], worker: tuple[int, int], position: tuple[int, int]
    ) -> Iterator[tuple[int, list[tuple[Tensor, int]]]]:
        """(update, its `size` examples) for one reader's share of the `updates`.

        `rank` is (index, count) of the processes and `worker` that of each one's workers, which take turns; `position`
        is (seed, stage).

        Raises:
            UserError: fewer shards than readers, or an image that cannot be read.
        """
        (process, processes), (index, workers) = rank, worker
        readers = processes * workers
        if len(self.shards) < readers:
            raise UserError(
                f"{self.name} has {len(self.shards)} shards for {processes} processes of {workers} workers, expected "
                "at least one per worker: lower data.workers, or use more shards"
            )
        updates = updates[index::workers]
        number = updates.start % workers  # readers take turns from update 0, whichever update is the first here
        reader = process * workers + number
        examples = self._shuffled(reader, readers, position)
        seen = len(range(number, updates.start, workers)) * size
        next(islice(examples, seen, seen), None)
        for update in updates:
            yield update, [self._pair(example) for example in islice(examples, size)]

    def _pair(self, example: Example) -> tuple[Tensor, int]:
        image = self.checked(cast(_Encoded, self.get).of([example])(0), example.name)
        return image, self.known.number(example.label, example.name)

    def _shuffled(self, reader: int, readers: int, position: tuple[int, int]) -> Iterator[Example]:
        draw = generator(*position, reader, readers, 2)
        buffer: list[Example] = []
        for example in self._epochs(reader, readers, position):
            if len(buffer) < BUFFER:
                buffer.append(example)
                continue
            chosen = int(torch.randint(BUFFER, (), generator=draw))
            yield buffer[chosen]
            buffer[chosen] = example

    def _epochs(self, reader: int, readers: int, position: tuple[int, int]) -> Iterator[Example]:
        shards = self.shards[reader::readers]
        for epoch in count():
            order = torch.randperm(len(shards), generator=generator(*position, reader, readers, 3, epoch))
            empty = True
            for example in self._once([shards[index] for index in order.tolist()]):
                empty = False
                yield example
            if empty:
                raise UserError(
                    f"{self.name}: {shards[0]} and the other shards of one reader hold no images: remove them"
                )

    def _once(self, shards: Sequence[str]) -> Iterator[Example]:
        for shard in shards:
            try:
                yield from self.read(shard)
            except UserError:
                raise
            except Exception as error:  # the libraries raise many kinds: all mean that the shard cannot be read
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{shard} cannot be read ({reason}): fetch or remove it") from error


@dataclass(frozen=True)
class _Encoded(Reader):
    """The first images of a stream, encoded; each is decoded when read."""

    examples: list[Example]

    def _source(self) -> str:
        return digest(*(np.frombuffer(example.content, np.uint8) for example in self.examples))

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """The decoded example."""
        content, _, name = self.examples[index]
        if not content:
            raise UserError(f"{name} is empty: remove it")
        return open_image(io.BytesIO(content), name)

    def of(self, examples: list[Example]) -> "_Encoded":
        """Other examples of the stream, read in the same way."""
        return replace(self, examples=examples)
