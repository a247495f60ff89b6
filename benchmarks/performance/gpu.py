"""Everything about a GPU that is to be seen on one, in under ten minutes: `make gpu`.

    python benchmarks/performance/gpu.py [--tiny] [--out docs/gpu]

parity      losses, distillation targets and samples on the device against the CPU, in float32 without tf32
variants    updates a second of A to D in float32, tf32 and bf16, with CUDA graphs, in bf16 also without, and of
            `--compiled` cases compiled by torch.compile: share of the peak, memory
recipes     the digits demo, and Fashion-MNIST where its data are (--data idx:PATH), with the minutes each took
processes   the same recipe on 1 and 2 processes by nccl, where there are two GPUs

`--tiny` does all of it in a small form, on whatever device there is. Writes OUT.json and prints one table.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cases import CASES, machine, our_updates, peak_flops, update_flops
from progdist import PARAMETERIZATIONS, WEIGHTINGS, Cosine, Denoiser, denoising_loss, distillation_target, sample
from progdist.compute.precision import Resolved

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = ("float32", "tf32", "bf16")
PARITY = 2e-4
"""The largest difference allowed, over the largest value, in float32."""

SMALL = (
    *("network.width=8", "network.groups=4", "teacher.updates=4", "distill.chain=[4,2]", "distill.stages={}"),
    *("distill.updates=2", "evaluate.samples=64", "evaluate.resamples=2"),
)
TINY = [word for setting in SMALL for word in ("--set", setting)]


def parity() -> dict[str, float]:
    """The largest difference between device and CPU over the largest value.

    Raises:
        AssertionError: a result is on another device than its input.
    """
    case, results = CASES["tiny"], []
    x, eps = torch.randn(2, case.batch, *case.image, generator=torch.Generator().manual_seed(0))
    u = torch.linspace(0, 0.9, case.batch, dtype=torch.float64)
    for device in (torch.device("cpu"), DEVICE):
        network = case.build().to(device).eval().requires_grad_(False)
        denoiser = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
        here, noise, times = x.to(device), eps.to(device), u.to(device)
        t = 1 - times
        found = {
            "loss": denoising_loss(denoiser, here, noise, times, weighting=WEIGHTINGS["truncated_snr"]),
            "target": distillation_target(denoiser, noise, t, t / 2),
            "sample": sample(denoiser, noise, 8),
        }
        assert all(value.device.type == device.type for value in found.values())
        results.append({name: value.cpu() for name, value in found.items()})
    cpu, here = results
    return {name: float((here[name] - cpu[name]).abs().max() / cpu[name].abs().max()) for name in cpu}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Matrix products and convolutions in tf32 or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def variant(name: str, kind: str, how: str, updates: int) -> dict[str, Any]:
    """One network in one precision."""
    precision: Resolved = "bf16" if kind == "bf16" else "float32"
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tf32(kind == "tf32"):
        seconds = our_updates(CASES[name], precision, updates, compiled=how == "compiled", graphs=how == "CUDA graphs")
        median = statistics.median(seconds)
        share = update_flops(copy.copy(CASES[name])) / median / peak_flops(DEVICE, precision)
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None
    return {"updates_per_second": round(1 / median, 2), "of_peak": round(share, 3), "gib": memory}


def minutes(command: list[str]) -> float:
    """How long a command took.

    Raises:
        CalledProcessError: it failed.
    """
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return round((time.perf_counter() - started) / 60, 2)


def recipes(tiny: bool, data: str | None, folder: Path) -> dict[str, float]:
    """Minutes of whole runs."""
    small = TINY if tiny else []
    progdist = [sys.executable, "-m", "progdist"]
    found = {"digits": minutes([*progdist, "run", "digits", "--out", str(folder / "digits"), *small])}
    if data:
        fashion = ["run", "fashion-mnist", "--out", str(folder / "fashion"), "--set", f"data.source={data}", *small]
        found["fashion-mnist"] = minutes([*progdist, *fashion])
    if torch.cuda.device_count() > 1:
        two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "progdist"]
        found["digits, 2 processes"] = minutes([*two, "run", "digits", "--out", str(folder / "two"), *small])
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data", help="of Fashion-MNIST, e.g. idx:PATH")
    parser.add_argument("--cases", nargs="*", choices=list("ABCD"), default=list("ABCD"))
    parser.add_argument("--compiled", nargs="*", choices=list("ABCD"), default=["A", "C"], help="a minute each")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("docs/gpu"))
    arguments = parser.parse_args()
    if DEVICE.type == "cpu" and not arguments.tiny:
        parser.exit(2, "there is no CUDA device here: use --tiny to try the script\n")
    with tf32(False):
        differences = parity()
    figures: dict[str, Any] = {"machine": machine(DEVICE), "parity": differences, "variants": {}}
    print("parity: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    if (worst := max(differences.values())) > PARITY:
        parser.exit(1, f"device and CPU differ by {worst:g}, allowed is {PARITY:g}\n")
    measure = [(name, kind, "CUDA graphs") for name in arguments.cases for kind in arguments.kinds]
    measure += [(name, "bf16", "plain") for name in arguments.cases]
    measure += [(name, "bf16", "compiled") for name in arguments.compiled]
    if arguments.tiny:
        measure = [("tiny", "float32", "plain")]
    print("| network | precision | | updates a second | of peak | GiB |\n|---|---|---|---:|---:|---:|")
    for name, kind, how in measure:
        row = variant(name, kind, how, updates=2 if arguments.tiny else 20)
        figures["variants"][f"{name} {kind} {how}"] = row
        memory = "" if row["gib"] is None else f"{row['gib']:.2f}"
        share = f"{100 * row['of_peak']:.0f} %"
        print(f"| {name} | {kind} | {how} | {row['updates_per_second']} | {share} | {memory} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures["minutes"] = recipes(arguments.tiny, arguments.data, Path(folder))
    print("minutes: " + ", ".join(f"{name} {value}" for name, value in figures["minutes"].items()))
    arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
