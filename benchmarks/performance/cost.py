"""What an update and a sample cost, as ratios: `make bench`.

    python benchmarks/performance/cost.py [--cases A B C] [--repeats 5] [--out docs/performance]

update      the training loop's distillation update, its median in milliseconds
overhead    that update over what its network calls, its backward pass and its optimiser step took, within the same
            updates: what a busy machine does to the one it does to the other
plain       the same update written the obvious way in plain PyTorch, over ours; each in turn
of peak     the update's floating-point operations a second over those of a 2048x2048 matrix product
sampling    the stock DDIMPipeline over our sampler: the same network, noise, 8 steps, precision; each in turn
growth      of C's update with the batch, the width, the pixels and the substeps; and of the time in which each of
            1, 2 and 4 processes draws its rows of 2,048 examples of 3x64x64

Writes OUT.json and prints the tables of docs/results/performance.md.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline

from cases import CASES, Case, Clock, Noise, machine, our_updates, peak_flops, spread, update_flops
from progdist import PARAMETERIZATIONS, Cosine, Denoiser, sample
from progdist.compute.cuda_graphs import CudaGraphs
from progdist.compute.precision import Resolved, autocast, resolve
from progdist.models.model import Model
from progdist.students.folder import stock_scheduler
from progdist.training.batches import Batches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRAPHS = DEVICE.type == "cuda"
"""Whether our networks are captured as CUDA graphs (`cuda_graphs: true`)."""


def plain_update(case: Case, precision: Resolved) -> Callable[[], None]:
    """Algorithm 2 of the paper as one would write it down."""
    student = case.build().to(DEVICE)
    teacher = copy.deepcopy(student).eval()
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    x = torch.randn(case.batch, *case.image, device=DEVICE)

    def scales(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = t[:, None, None, None] * torch.pi / 2
        return angle.cos(), angle.sin()

    def denoise(network: Any, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        alpha, sigma = scales(t)
        return alpha * z - sigma * network(z, 1024 * t - 1).sample

    def step(z: torch.Tensor, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
        return alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t

    def update() -> None:
        t = torch.randint(2, 5, (case.batch,), device=DEVICE) / 4
        middle, s = t - 0.125, t - 0.25
        alpha, sigma = scales(t)
        z = alpha * x + sigma * torch.randn_like(x)
        with autocast(DEVICE, precision):
            with torch.no_grad():
                half = step(z, denoise(teacher, z, t), t, middle)
                end = step(half, denoise(teacher, half, middle), middle, s)
                alpha_s, ratio = scales(s)[0], scales(s)[1] / sigma
                target = (end - ratio * z) / (alpha_s - ratio * alpha)
            weight = (alpha**2 / sigma**2).clamp(min=1)
            loss = (weight * (denoise(student, z, t) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return update


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    clock = Clock(DEVICE)
    with clock.running():
        work()
    return clock.seconds


def update_figures(case: Case, precision: Resolved, repeats: int) -> dict[str, Any]:
    """An update against its networks, against plain PyTorch and against the peak."""
    clock, plain = Clock(DEVICE), plain_update(case, precision)
    whole = our_updates(case, precision, repeats, clock=clock, graphs=GRAPHS)
    plain()
    ours, theirs = [], []
    for _ in range(repeats):
        ours += our_updates(case, precision, 2, graphs=GRAPHS)
        theirs += [timed(plain) for _ in range(2)]
    median = statistics.median(ours)
    return {
        "update_ms": spread(ours),
        "overhead": round(sum(whole) / clock.seconds, 4),
        "plain_ratio": round(statistics.median(theirs) / median, 3),
        "of_peak": round(update_flops(case) / median / peak_flops(DEVICE, precision), 3),
    }


def sampling_figures(case: Case, precision: Resolved, repeats: int, steps: int = 8) -> dict[str, Any]:
    """Ours and the stock pipeline's seconds for one batch."""
    network = case.build().to(DEVICE).eval()
    denoiser = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    assert isinstance(network, UNet2DModel)
    scheduler: Any = stock_scheduler(Model(denoiser))
    pipeline = DDIMPipeline(network, scheduler)
    if GRAPHS:
        denoiser = denoiser.with_network(CudaGraphs(network))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(case.batch, *case.image, device=DEVICE)

    def ours() -> object:
        with autocast(DEVICE, precision):
            return sample(denoiser, noise, steps)

    def stock() -> object:
        with autocast(DEVICE, precision):
            return pipeline(batch_size=case.batch, num_inference_steps=steps, output_type="np")

    for _ in range(3):  # on a GPU the first calls are captured
        ours()
    stock()
    pairs = [(timed(ours), timed(stock)) for _ in range(repeats)]
    mine, theirs = zip(*pairs, strict=True)
    ratio = statistics.median(theirs) / statistics.median(mine)
    return {"sample_ms": spread(list(mine)), "stock_ratio": round(ratio, 3)}


def growth(precision: Resolved, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of C's update by batch, width, resolution and substeps, and of a process's own draws."""
    case = CASES["C"]

    def of(changed: Case, substeps: int = 2) -> float:
        return spread(our_updates(changed, precision, repeats, substeps=substeps, graphs=GRAPHS))["median"]

    return {
        "batch": {str(n): of(replace(case, batch=n)) for n in (16, 32, 64, 128)},
        "width": {str(n): of(replace(case, width=n)) for n in (16, 32, 64)},
        "pixels": {f"{n}x{n}": of(replace(case, image=(1, n, n))) for n in (8, 16, 32)},
        "substeps": {str(k): of(case, substeps=k) for k in (1, 2, 4, 8)},
        "processes": {str(n): spread(draws(n, repeats))["median"] for n in (1, 2, 4)},
    }


def draws(processes: int, repeats: int) -> list[float]:
    """Seconds in which one of so many processes draws its rows of 2,048 examples of 3x64x64, with noise and times."""
    size = 2048
    rows = Batches(Noise((3, 64, 64)), size, seed=0, stage=1)(0, repeats + 1, slice(0, size // processes))
    return [timed(lambda: next(rows)) for _ in range(repeats + 1)][1:]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["A", "B", "C"], choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], help="those that pay here if not given")
    parser.add_argument("--out", type=Path, default=Path("docs/performance"))
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    usual: list[Resolved] = ["float32", "bf16"] if resolve("auto", DEVICE) == "bf16" else ["float32"]
    both: list[Resolved] = arguments.precisions or usual
    figures: dict[str, Any] = {"machine": machine(DEVICE), "cases": {}}
    print("| network | precision | update, ms | overhead | plain / ours | of peak | sample, ms | stock / ours |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in arguments.cases:
        for precision in both:
            row = update_figures(CASES[name], precision, arguments.repeats)
            row |= sampling_figures(CASES[name], precision, arguments.repeats)
            figures["cases"][f"{name} {precision}"] = row
            one, made = row["update_ms"], row["sample_ms"]
            print(
                f"| {name} | {precision} | {one['median']:.0f} ({one['low']:.0f} to {one['high']:.0f}) "
                f"| {row['overhead']:.3f} | {row['plain_ratio']:.2f} | {100 * row['of_peak']:.0f} % "
                f"| {made['median']:.0f} ({made['low']:.0f} to {made['high']:.0f}) | {row['stock_ratio']:.2f} |",
                flush=True,
            )
    figures["growth"] = growth(both[0], arguments.repeats)
    for name, values in figures["growth"].items():
        print(f"\n| {name} | " + " | ".join(values) + " |\n|---|" + "---:|" * len(values))
        print("| ms | " + " | ".join(f"{value:.0f}" for value in values.values()) + " |")
    arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n" + ", ".join(f"{name} {value}" for name, value in figures["machine"].items()))


if __name__ == "__main__":
    main()
