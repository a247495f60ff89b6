"""The networks that are timed, and how: shared by the benchmarks.

A   1x32x32, width 64, multipliers 1, 2, 2, two blocks, attention at 8; batch 64
B   the paper's CIFAR-10 layout at width 64, 3x32x32; batch 32
C   the digits recipe's network, 1x8x8; batch 64
D   the paper's full CIFAR-10 network, 3x32x32, width 256; batch 128; for a GPU
"""

import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from progdist import PARAMETERIZATIONS, Cosine, Denoiser
from progdist.compute.cuda_graphs import CALLS_BEFORE, CudaGraphs
from progdist.compute.precision import Resolved
from progdist.methods import PROGRESSIVE
from progdist.methods.chain import Stage
from progdist.models.unet import unet
from progdist.training.batches import Batch, Batches
from progdist.training.config import TrainConfig
from progdist.training.distributed import join_processes
from progdist.training.loop import TrainContext, train


@dataclass(frozen=True)
class Case:
    """A network and its batch."""

    image: tuple[int, int, int]
    width: int
    multipliers: tuple[int, ...]
    batch: int
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network, with weights that are drawn, the zeros of its last layers included."""
        torch.manual_seed(0)
        network = unet(image=self.image, width=self.width, multipliers=self.multipliers, **self.options)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return network


CASES = {
    "A": Case((1, 32, 32), 64, (1, 2, 2), 64, {"blocks": 2, "attention": (8,)}),
    "B": Case((3, 32, 32), 64, (1, 1, 1), 32, {"blocks": 3, "attention": (16, 8)}),
    "C": Case((1, 8, 8), 16, (1, 2), 64, {"groups": 16}),
    "D": Case((3, 32, 32), 256, (1, 1, 1), 128, {"blocks": 3, "attention": (16, 8), "embedding": 1024}),
    "tiny": Case((1, 8, 8), 8, (1, 2), 4, {"groups": 4}),
}


class Noise:
    """Images of noise, as data."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape: tuple[int, ...] = shape
        self.images = torch.randn(256, *shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)

    def __len__(self) -> int:
        """256."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One, of class 0."""
        return self.images[index], 0


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Adds up the seconds within some calls."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of this block."""
        synchronize(self.device)
        started = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds += time.perf_counter() - started

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            with self.running():
                return work(*arguments, **options)

        return counted


def our_updates(
    case: Case,
    precision: Resolved,
    updates: int,
    *,
    substeps: int = 2,
    compiled: bool = False,
    graphs: bool = False,
    clock: Clock | None = None,
) -> list[float]:
    """Seconds of each distillation update by the training loop, after the first ones, which warm up.

    With a clock the networks' forward calls, the backward pass and the optimiser step are counted by it.
    """
    warmup = CALLS_BEFORE + 4 if torch.cuda.is_available() else 1
    processes = join_processes()
    network = case.build().to(processes.device)
    teacher = Denoiser(copy.deepcopy(network), Cosine(), PARAMETERIZATIONS["v"]).eval().requires_grad_(False)
    if compiled:
        network.compile()
        teacher.network.compile()
    elif graphs:
        teacher = teacher.with_network(CudaGraphs(teacher.network))
    objective = PROGRESSIVE.stage_loss(teacher, Stage(4, substeps), "truncated_snr")
    student = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    seconds, last = [], time.perf_counter()

    def loss(module: nn.Module, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        return objective(student.with_network(module), x=batch["x"], eps=batch["eps"], u=batch["u"])

    def observe(progress: object) -> None:
        nonlocal last
        synchronize(processes.device)
        seconds.append(time.perf_counter() - last)
        last = time.perf_counter()
        if clock and len(seconds) == warmup:
            clock.seconds = 0.0

    restore: list[tuple[Any, str, Any]] = []
    if clock:
        timed: list[tuple[Any, str]] = [(network, "forward"), (teacher.network, "forward")]
        if isinstance(teacher.network, CudaGraphs):
            timed = [(CudaGraphs, "forward")]
        for owner, name in [*timed, (torch.Tensor, "backward"), (torch.optim.AdamW, "step")]:
            restore.append((owner, name, getattr(owner, name)))
            setattr(owner, name, clock.timed(getattr(owner, name)))
    batches = Batches(Noise(case.image), case.batch, seed=0, stage=1)
    config = TrainConfig(updates + warmup, case.batch, 1e-4, precision=precision, cuda_graphs=graphs)
    try:
        train(network, loss, batches, config, TrainContext(processes, observe=observe))
    finally:
        for owner, name, value in restore:
            setattr(owner, name, value)
    return seconds[warmup:]


def update_flops(case: Case, substeps: int = 2) -> int:
    """Floating-point operations of an update: `substeps` forward calls, and the student's forward and backward."""
    network, z = case.build(), torch.randn(case.batch, *case.image)
    counter = FlopCounterMode(display=False)
    with counter:
        network(z, torch.zeros(case.batch)).sample.mean().backward()
    both = counter.get_total_flops()
    with counter, torch.no_grad():
        network(z, torch.zeros(case.batch))
    return both + substeps * counter.get_total_flops()


def peak_flops(device: torch.device, precision: Resolved) -> float:
    """Floating-point operations a second of a square matrix product, of 2,048 rows, on a GPU 8,192: the best of ten."""
    dtype, size = torch.bfloat16 if precision == "bf16" else torch.float32, 8192 if device.type == "cuda" else 2048
    matrix, clocks = torch.randn(size, size, device=device).to(dtype), []
    for _ in range(11):
        clock = Clock(device)
        with clock.running():
            torch.mm(matrix, matrix)
        clocks.append(clock.seconds)
    return 2 * size**3 / min(clocks[1:])


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, first and third quartile, in milliseconds."""
    low, middle, high = (
        statistics.quantiles([1000 * one for one in seconds], n=4) if len(seconds) > 1 else 3 * [1000 * seconds[0]]
    )
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "repeats": len(seconds)}


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, and what the machine is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cpu": next(models, platform.processor()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
