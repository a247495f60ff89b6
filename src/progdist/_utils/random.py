"""Random numbers as a function of position, e.g. (seed, stage, update), the same on every machine.

Stages count from 0, the teacher. Draws outside training have stage numbers of their own.

Dropout and user code draw from torch's global generators. These are seeded only around code that is seen to draw from
them, by one thread at a time, and restored afterwards: the program's other random numbers, including those of its
threads, do not change.
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
CROPS = 4_000_000  # stage number of the positions of image crops
TEACHER_SAMPLES = 5_000_000  # stage number of the noise of a teacher's own samples, where these are the data


def position_seed(*position: int) -> int:
    """A 64-bit seed for a position of nonnegative integers, e.g. (seed, stage, update)."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def seeds(rows: Sequence[int], *position: int) -> list[int]:
    """A seed for each of some rows of a batch at a position, e.g. (seed, stage, update), independent of other rows.

    Row n gets mix(word + n) in 32 bits, all that torch's CPU generator uses of a seed. The mixing is that of
    MurmurHash3 (Appleby 2011). It is one-to-one, so no two rows of a batch share a generator.
    """
    word = np.random.SeedSequence(position).generate_state(1, np.uint32)
    z = word + np.asarray(rows, dtype=np.uint32)
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (z ^ (z >> np.uint32(16))).tolist()


def generator(*position: int) -> torch.Generator:
    """A CPU generator for a position of nonnegative integers, e.g. (seed, stage, update)."""
    return torch.Generator().manual_seed(position_seed(*position))


class RowGenerator(torch.Generator):
    """A CPU generator for some rows of many, whose normal numbers are a function of position, row and draw.

    Row n gets the same numbers in any batch and any process. `normal` draws them; other code that draws from it, e.g. a
    user's sampling step, gets the numbers of the position and the first row.
    """

    def __new__(cls, position: Sequence[int], rows: range) -> "RowGenerator":
        """Create the underlying torch.Generator."""
        return super().__new__(cls)

    def __init__(self, position: Sequence[int], rows: range) -> None:
        self.position, self.rows, self.draws = tuple(position), rows, 0
        self.manual_seed(position_seed(*position, rows.start))

    def part(self, first: int, count: int) -> "RowGenerator":
        """Return the generator of `count` of the rows, from row `first` on."""
        return RowGenerator(self.position, self.rows[first : first + count])

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal numbers of the shape (rows, ...) and type of a tensor: the next draw of every row."""
        values, row_generator = torch.empty(like.shape, dtype=like.dtype), torch.Generator()
        for value, seed in zip(values, seeds(self.rows, *self.position, self.draws), strict=True):
            value.normal_(generator=row_generator.manual_seed(seed))
        self.draws += 1
        return values


_SEEDED = threading.RLock()  # held by the thread that has seeded torch's generators
CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's CPU generator and that of a device inside the context, and restore them afterwards.

    Only these two are touched; torch.manual_seed seeds every kind of device, which takes a millisecond.
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
    """Restore torch's global generators afterwards if anything drew from them inside the context."""
    with _SEEDED:
        states, seen = _states(device), _Draws()
        try:
            with seen:
                yield seen
        finally:
            if seen.any:
                _restore(states, device)


class SeededWhereDrawn:
    """Runs work with torch's global generators seeded if it draws from them, as the first drawing call shows.

    That call is repeated with a seed. Until then every call is watched; work that draws nothing leaves the generators
    alone.
    """

    def __init__(self, draws: bool | None = None) -> None:
        self.draws = draws  # None: not yet known

    def __call__(self, work: Callable[[], Result], seed: Callable[[], int], device: torch.device = CPU) -> Result:
        """Run the work and return its result."""
        if not self.draws:
            with _SEEDED:  # keeps out the states of another thread's seeded work
                before = _states(device)
            if self.draws is False:
                result = work()
                if all(map(torch.equal, before, _states(device))):
                    return result
            with _SEEDED:
                with restored(device) as seen:  # this thread drew, or another did
                    result = work()
                self.draws = seen.any
                if not self.draws:
                    return result
                _restore(before, device)
        with seeded(seed(), device):
            return work()


class _Draws(TorchDispatchMode):
    """Records whether any operation of this thread draws from torch's global generators."""

    any = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) and kwargs.get("generator") is None:
            self.any |= _dropout(func, args, kwargs) != 0
        return func(*args, **kwargs)


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:  # noqa: ANN401
    """The dropout rate of an attention operation, which draws nothing at 0; None for other operations."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
    return None


def _states(device: torch.device) -> list[Tensor]:
    """The states of the CPU's generator and of the device's."""
    states = [torch.default_generator.get_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(*_index(device))]


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.default_generator.set_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
