"""Images that stream: shards read from beginning to end, so that data need not fit a disk.

The shards are dealt to the processes and to the workers of each, and every reader walks through its own, epoch after
epoch, in an order of shards that is new in each epoch and through a buffer of BUFFER examples that mixes them. What a
reader sees is a function of (seed, stage, number of readers); to go on at a later update it passes over what earlier
ones saw without decoding it. A batch comes from one reader, and readers take turns.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from PIL import Image
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.random import generator
from progdist.data.folders import UNREADABLE
from progdist.data.images import Images, ImageTransform

BUFFER = 1000
"""Examples, as the bytes that they are in their shards, among which a reader chooses the next."""

KEPT = 10_000
"""Examples at the beginning of a stream that stand for all of it in evaluation."""

Example = tuple[bytes, int]
"""An encoded image and its label (0 where there is none)."""

ReadShard = Callable[[str], Iterator[Example]]


class StreamedImages(Images):
    """Images that can only be read in the order of a stream.

    The first KEPT of them, kept as encoded bytes, stand for all where images are asked for by their index: in
    evaluation, in the teacher's check, and as the shares of the classes.

    Args:
        name: the source it came from.
        shards: their paths or addresses.
        read: the examples of a shard, in their order.
        transform: how an image becomes a tensor.

    Raises:
        UserError: there are no images.
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
        """A stream holds nothing out.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name} is a stream, of which {count} images cannot be held out: leave distill.stop")

    def walk(
        self,
        size: int,
        first: int,
        last: int,
        rank: tuple[int, int],
        worker: tuple[int, int],
        position: tuple[int, int],
    ) -> Iterator[tuple[int, list[tuple[Tensor, int]]]]:
        """The examples of one reader's updates.

        Args:
            size: examples that this process takes in an update.
            first: the first update.
            last: the last one, not included.
            rank: number of this process, and how many there are.
            worker: number of this worker in it, and how many there are; it makes every n-th update from first + number
            position: (seed, stage).

        Yields:
            (update, examples).

        Raises:
            UserError: fewer shards than readers, or an image that cannot be read.
        """
        (process, processes), (own, workers) = rank, worker
        readers = processes * workers
        if len(self.shards) < readers:
            raise UserError(
                f"{self.name} has {len(self.shards)} shards for {processes} processes of {workers} workers: give each "
                "at least one (data.workers, or more shards)"
            )
        number = (first + own) % workers  # readers take turns from update 0 on, whichever update is the first
        reader = process * workers + number
        examples = self._shuffled(reader, readers, position)
        seen = len(range(number, first + own, workers)) * size
        next(islice(examples, seen, seen), None)
        decode = _Encoded(self.transform, self.name, [])
        for update in range(first + own, last, workers):
            batch = list(islice(examples, size))
            yield update, [(self._checked(decode.decode(content), label), label) for content, label in batch]

    def _checked(self, image: Tensor, label: int) -> Tensor:
        if not 0 <= label < max(1, len(self.classes)):
            raise UserError(
                f"{self.name}: an image has label {label}, and the first {len(self)} know {len(self.classes)} classes: "
                "mix the classes among the shards"
            )
        if tuple(image.shape) != self.shape:
            raise UserError(
                f"{self.name}: an image is {tuple(image.shape)}, the first is {self.shape} (channels, height, width): "
                "give a size (and channels) to bring all to one shape"
            )
        return image

    def _shuffled(self, reader: int, readers: int, position: tuple[int, int]) -> Iterator[Example]:
        """A reader's endless walk through its shards."""
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
        own = self.shards[reader::readers]
        for epoch in count():
            order = torch.randperm(len(own), generator=generator(*position, reader, readers, 3, epoch))
            empty = True
            for example in self._once([own[index] for index in order.tolist()]):
                empty = False
                yield example
            if empty:
                raise UserError(f"{self.name}: {own[0]} and the other shards of one reader hold no images: remove them")

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
    """Encoded images, decoded when they are asked for."""

    transform: ImageTransform
    name: str
    examples: list[Example]

    def __call__(self, index: int) -> Tensor:
        return self.decode(self.examples[index][0])

    def decode(self, content: bytes) -> Tensor:
        try:
            bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
            with bombs, Image.open(io.BytesIO(content)) as image:
                return self.transform(image)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.name} holds an image that cannot be read ({reason}): remove it") from error
