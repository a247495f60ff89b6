"""Images that stream: shards read from beginning to end, so that data need not fit a disk.

The shards are dealt to the processes and to the workers of each, and every reader walks through its own, epoch after
epoch, in an order of shards that is new in each epoch and through a buffer of BUFFER examples that mixes them. What a
reader sees is a function of (seed, stage, number of readers); to go on at a later update it passes over what earlier
ones saw without decoding it. A batch comes from one reader, and readers take turns.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.random import generator
from progdist.data.images import Images, ImageTransform, open_image

BUFFER = 1000  # examples, as the bytes that they are in their shards, among which a reader chooses the next
KEPT = 10_000  # examples at the beginning of a stream that stand for all of it in evaluation
Example = tuple[bytes, int]  # an encoded image and its label (0 where there is none)
ReadShard = Callable[[str], Iterator[Example]]


class StreamedImages(Images):
    """Images that can only be read in the order of a stream, shard by shard.

    The first KEPT of them, kept as encoded bytes, stand for all where images are read by their index: in
    evaluation, in the teacher's check, and as the shares of the classes.
    """

    def __init__(self, name: str, shards: Sequence[str], read: ReadShard, transform: ImageTransform) -> None:
        self.shards, self.read, self.transform = list(shards), read, transform
        kept = list(islice(self._once(self.shards), KEPT))
        labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
        super().__init__(name, len(kept), _Encoded(transform, name, kept), labels if labels.any() else None)

    def reframed(self, transform: ImageTransform) -> "StreamedImages":
        """The same stream under another transform."""
        return StreamedImages(self.name, self.shards, self.read, transform)

    def split(self, count: int, seed: int) -> tuple[Images, Images]:
        """Raise a UserError: a stream holds nothing out."""
        raise UserError(f"{self.name} is a stream, of which {count} images cannot be held out: leave distill.stop")

    def walk(
        self, size: int, updates: range, rank: tuple[int, int], worker: tuple[int, int], position: tuple[int, int]
    ) -> Iterator[tuple[int, list[tuple[Tensor, int]]]]:
        """(update, its `size` examples) of one reader's share of the `updates`.

        `rank` is (index, count) of the processes and `worker` of the workers in each, which take turns; `position` is
        (seed, stage).

        Raises:
            UserError: fewer shards than readers, or an image that cannot be read.
        """
        (process, processes), (index, workers) = rank, worker
        readers = processes * workers
        if len(self.shards) < readers:
            raise UserError(
                f"{self.name} has {len(self.shards)} shards for {processes} processes of {workers} workers: give each "
                "at least one (data.workers, or more shards)"
            )
        updates = updates[index::workers]
        number = updates.start % workers  # readers take turns from update 0 on, whichever update is the first
        reader = process * workers + number
        examples = self._shuffled(reader, readers, position)
        seen = len(range(number, updates.start, workers)) * size
        next(islice(examples, seen, seen), None)
        for update in updates:
            yield update, [self._pair(*example) for example in islice(examples, size)]

    def _pair(self, content: bytes, label: int) -> tuple[Tensor, int]:
        image = _decoded(content, self.transform, self.name)
        if not 0 <= label < max(1, len(self.classes)):
            raise UserError(
                f"{self.name}: an image has label {label}, and the first {len(self)} know {len(self.classes)} classes: "
                "mix the classes among the shards"
            )
        return self.checked(image, "an image"), label

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
            except Exception as error:  # the libraries raise many kinds: all mean that it cannot be had
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{shard} cannot be read ({reason}): fetch or remove it") from error


@dataclass(frozen=True)
class _Encoded:
    """The first images of a stream, encoded; each is decoded when it is read."""

    transform: ImageTransform
    name: str
    examples: list[Example]

    def __call__(self, index: int) -> Tensor:
        return _decoded(self.examples[index][0], self.transform, self.name)


def _decoded(content: bytes, transform: ImageTransform, stream: str) -> Tensor:
    with open_image(io.BytesIO(content), f"{stream}: an example") as image:
        return transform(image)
