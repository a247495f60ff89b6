"""Random numbers as a function of position: (seed, stage, update) and the like, the same on every machine.

Stages count from 0, the teacher. What is drawn apart from all training has a stage number of its own.

Dropout, and code of the user's own, draw from torch's own generators, which belong to the whole program. They are
seeded only around what is seen to draw from them, by one thread at a time, and restored: the program's other numbers,
those of its threads included, are as without us.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")

EVALUATION_NOISE = 1_000_000  # stage number of the noise of a run's evaluations
SAMPLING_NOISE = 2_000_000  # stage number of the noise of `progdist sample`
HELD_OUT_NOISE = 3_000_000  # stage number of the noise of held-out losses; the number of the stage is added
CROPS = 4_000_000  # stage number of the places at which images are cropped
TEACHER_SAMPLES = 5_000_000  # stage number of the noise of a teacher's own samples, where these are the data


def position_seed(*position: int) -> int:
    """A seed of 64 bits for one position, e.g. (seed, stage, update): nonnegative integers."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def seeds(rows: Sequence[int], *position: int) -> list[int]:
    """A seed for each of some rows of a batch at one position, e.g. (seed, stage, update): whatever the other rows are.

    Row n has mix(word + n) in 32 bits, which are all that torch's CPU generator takes of a seed. The mixing is that of
    MurmurHash3 (Appleby 2011), which is one to one, so that no two rows of a batch share a generator.
    """
    word = np.random.SeedSequence(position).generate_state(1, np.uint32)
    z = word + np.asarray(rows, dtype=np.uint32)
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (z ^ (z >> np.uint32(16))).tolist()


def generator(*position: int) -> torch.Generator:
    """A CPU generator for one position, e.g. (seed, stage, update): nonnegative integers."""
    return torch.Generator().manual_seed(position_seed(*position))


class RowGenerator(torch.Generator):
    """A CPU generator for some rows of many, whose normal numbers are a function of position, row and draw.

    So row n gets the numbers that it gets in any batch and any process. `normal` draws them; whatever else
    draws from it, as a sampling step of the user's own, gets those of the position and the first row.
    """

    def __new__(cls, position: Sequence[int], rows: range) -> "RowGenerator":
        """A torch.Generator."""
        return super().__new__(cls)

    def __init__(self, position: Sequence[int], rows: range) -> None:
        self.position, self.rows, self.draws = tuple(position), rows, 0
        self.manual_seed(position_seed(*position, rows.start))

    def part(self, first: int, count: int) -> "RowGenerator":
        """That of `count` of the rows."""
        return RowGenerator(self.position, self.rows[first : first + count])

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape (rows, ...) and type of a tensor: the next draw of every row."""
        values, row_generator = torch.empty(like.shape, dtype=like.dtype), torch.Generator()
        for value, seed in zip(values, seeds(self.rows, *self.position, self.draws), strict=True):
            value.normal_(generator=row_generator.manual_seed(seed))
        self.draws += 1
        return values


_SEEDED = threading.RLock()  # held by the thread whose seed torch's generators have
CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """torch's own generators seeded meanwhile, those of the CPU and of a device, and afterwards as they were.

    Only these two are looked for; torch.manual_seed looks for every kind of device, and takes a millisecond.
    """
    with _SEEDED:
        states = _states(device)
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        try:
            yield
        finally:
            _restore(states, device)


@contextmanager
def restored(device: torch.device = CPU) -> "Iterator[_Draws]":
    """torch's own generators as before afterwards, if something drew from them in here."""
    with _SEEDED:
        states, seen = _states(device), _Draws()
        try:
            with seen:
                yield seen
        finally:
            if seen.any:
                _restore(states, device)


class SeededWhereDrawn:
    """Calls work with torch's own generators seeded if it draws from them; the first call that does shows that.

    That call is made once more, seeded. Until then every call is looked at, and work that draws nothing leaves the
    generators alone.
    """

    def __init__(self, draws: bool | None = None) -> None:
        self.draws = draws  # None before the first call, unless it is known

    def __call__(self, work: Callable[[], Result], seed: Callable[[], int], device: torch.device = CPU) -> Result:
        """What the work returns."""
        if not self.draws:
            with _SEEDED:  # not the states of another thread's seeded work
                before = _states(device)
            if self.draws is False:
                result = work()
                if all(map(torch.equal, before, _states(device))):
                    return result
            with _SEEDED:
                with restored(device) as seen:  # it drew, or another thread did
                    result = work()
                self.draws = seen.any
                if not self.draws:
                    return result
                _restore(before, device)
        with seeded(seed(), device):
            return work()


class _Draws(TorchDispatchMode):
    """Whether any operation of this thread draws from torch's own generators."""

    any = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) and kwargs.get("generator") is None:
            self.any |= _dropout(func, args, kwargs) != 0
        return func(*args, **kwargs)


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:  # noqa: ANN401
    """The share that attention drops, which draws nothing if it is 0; None of any other operation."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
    return None


def _states(device: torch.device) -> list[Tensor]:
    """Of the CPU's generator, and of the device's."""
    states = [torch.default_generator.get_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(*_index(device))]


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.default_generator.set_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
