"""A pass of each network on a GPU in bf16: as it is and as a CUDA graph, in both memory formats.

    python benchmarks/performance/cuda_passes.py [A B C D]

Prints the median milliseconds of a call without a gradient, and of one with its backward pass; nothing else is run.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from cases import CASES, Clock

REPEATS, WARMUP = 10, 3


def median(work: Callable[[], object]) -> float:
    """Milliseconds, after calls that warm up."""
    took = []
    for _ in range(WARMUP + REPEATS):
        clock = Clock(torch.device("cuda"))
        with clock.running():
            work()
        took.append(clock.seconds)
    return 1000 * statistics.median(took[WARMUP:])


def recorded(work: Callable[[], object]) -> Callable[[], object]:
    """What replays the work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def passes(name: str, memory_format: torch.memory_format) -> tuple[Callable[[], object], Callable[[], object]]:
    """A call of a network, and a call with its backward pass."""
    case = CASES[name]
    network: Any = case.build()
    network.to("cuda", memory_format=memory_format)
    z = torch.randn(case.batch, *case.image, device="cuda").contiguous(memory_format=memory_format)
    timestep = torch.zeros(case.batch, device="cuda")

    def call() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return network(z, timestep).sample

    def forward() -> object:
        with torch.no_grad():
            return call()

    def both() -> None:
        loss = call().float().square().mean()
        for parameter in network.parameters():
            parameter.grad = None
        loss.backward()

    return forward, both


def main() -> None:
    """Print a table."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    print("| network | memory format | call | as a graph | with backward | as a graph |\n|---|---|---:|---:|---:|---:|")
    for name in sys.argv[1:] or list("ABCD"):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            works = [form for work in passes(name, memory_format) for form in (work, recorded(work))]
            print(
                f"| {name} | {memory_format} | " + " | ".join(f"{median(work):.1f}" for work in works) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
