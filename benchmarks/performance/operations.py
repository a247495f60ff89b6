"""Where an update's time goes, by kind of operation: what is left to save.

    python benchmarks/performance/operations.py [--cases A B C] [--updates 3]

For each network the share of each kind in the CPU time of its distillation updates (torch's profiler, time within the
operation itself), with the rate of the convolutions, forward and backward, over that of a 2048x2048 matrix product.
"""

import argparse
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from cases import CASES, Case, our_updates, peak_flops

KINDS = {
    "convolutions, forward": ("mkldnn_convolution", "aten::_slow_conv2d", "aten::thnn_conv2d", "onednn"),
    "convolutions, backward": ("convolution_backward",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot", "flash_attention"),
    "group norms": ("native_group_norm", "native_batch_norm"),
    "SiLU": ("silu",),
    "optimizer": ("_fused_adam", "_foreach"),
}
"""Kind -> parts of the names of its operations; the first that fits counts, and the rest is `everything else`."""


def shares(case: Case, updates: int) -> dict[str, float]:
    """Kind -> seconds of CPU time an update, within its operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        made = len(our_updates(case, "float32", updates)) + 1
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        kinds = (kind for kind, names in KINDS.items() if any(name in event.key for name in names))
        seconds[next(kinds, "everything else")] += event.self_cpu_time_total / 1e6 / made
    return seconds


def convolution_flops(case: Case) -> tuple[int, int]:
    """Floating-point operations of the convolutions of one evaluation, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    network, counter = case.build(), FlopCounterMode(display=False)
    with counter:
        network(torch.randn(case.batch, *case.image), torch.zeros(case.batch)).sample.mean().backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    return counts["aten.convolution"], counts["aten.convolution_backward"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["A", "B", "C"], choices=list(CASES))
    parser.add_argument("--updates", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    peak = peak_flops(torch.device("cpu"), "float32")
    print("| network | " + " | ".join([*KINDS, "everything else", "convolutions' share of peak"]) + " |")
    print("|---|" + "---:|" * (len(KINDS) + 2))
    for name in arguments.cases:
        seconds = shares(CASES[name], arguments.updates)
        whole = sum(seconds.values())
        forward, backward = convolution_flops(CASES[name])
        rate = (3 * forward + backward) / (seconds["convolutions, forward"] + seconds["convolutions, backward"])
        parts = [f"{100 * seconds[kind] / whole:.0f} %" for kind in (*KINDS, "everything else")]
        print(f"| {name} | " + " | ".join([*parts, f"{100 * rate / peak:.0f} %"]) + " |", flush=True)


if __name__ == "__main__":
    main()
