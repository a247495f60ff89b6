"""How often intervals and verdicts are right: against many independent sets of samples of known distributions.

    python benchmarks/experiments/intervals.py

Every feature is normal: data of deviation 1, samples of another deviation and mean. Each trial draws two sets of n
samples of one distribution, so that neither is better: how often `progdist compare` would say that one is, and how
often the 95 % interval of each measure holds its mean over all trials; of the Frechet distance also how often it holds
the distance of the distributions themselves, which has no bias.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet, ratio, resampled_frechet, verdict
from progdist.evaluation.measures.kernel import kernel_distance
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.neighbors import density_coverage, precision_recall

# features, samples, data, the samples' deviation and mean
SETTINGS = [(64, 640, 4000, 0.85, 0.03), (16, 320, 4000, 0.85, 0.03), (16, 320, 4000, 0.7, 0.0), (16, 320, 4000, 1, 0)]


def exact(width: int, deviation: float, mean: float) -> float:
    """The Frechet distance of N(mean, deviation^2) and N(0, 1) in every feature."""
    return width * (mean**2 + (1 - deviation) ** 2)


def held(estimates: list[Estimate], value: float | None = None) -> str:
    """How many intervals hold a value, or the estimates' own mean."""
    value = sum(each.value for each in estimates) / len(estimates) if value is None else value
    return f"{sum(each.low <= value <= each.high for each in estimates) / len(estimates):.1%}"


def verdicts(setting: tuple[int, int, int, float, float], trials: int, resamples: int) -> str:
    """A line of the first table."""
    width, count, data_count, deviation, mean = setting
    draw = torch.Generator().manual_seed(0)
    distance, wrong = Frechet(moments(torch.randn(data_count, width, generator=draw))), 0
    estimates: list[Estimate] = []
    for trial in range(trials):
        pair = [deviation * torch.randn(count, width, generator=draw) + mean for _ in range(2)]
        one, other = (resampled_frechet(distance, each, resamples=resamples, seed=trial) for each in pair)
        wrong += verdict(ratio(one, other)) != "undecided"
        estimates += [one.estimate, other.estimate]
    average = sum(each.value for each in estimates) / len(estimates)
    true = exact(width, deviation, mean)
    cells = [width, count, f"{deviation:g}", f"{true:.3f}", f"{average:.3f}"]
    cells += [f"{wrong / trials:.1%}", held(estimates), held(estimates, true)]
    return "| " + " | ".join(map(str, cells)) + " |"


def coverage(setting: tuple[int, int, int, float, float], trials: int) -> str:
    """A line of the second table."""
    width, count, data_count, deviation, mean = setting
    draw = torch.Generator().manual_seed(1)
    data, found = torch.randn(data_count, width, generator=draw), dict[str, list[Estimate]]()
    neighbors: tuple[Callable[..., dict[str, Estimate]], ...] = (precision_recall, density_coverage)
    for trial in range(trials):
        samples: Tensor = deviation * torch.randn(count, width, generator=draw) + mean
        value, error = kernel_distance(data, samples, seed=trial)
        measured = {"kernel": Estimate.normal(value, error, -float("inf"))}
        for measure in neighbors:
            measured |= measure(data, samples, seed=trial)
        for name, each in measured.items():
            found.setdefault(name, []).append(each)
    cells = [width, count, f"{deviation:g}", *(held(each) for each in found.values())]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=100)
    arguments = parser.parse_args()
    headings = "features", "samples", "deviation", "distance", "measured", "wrong verdicts", "holds the mean", "exact"
    print(f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    for setting in SETTINGS:
        print(verdicts(setting, arguments.trials, arguments.resamples), flush=True)
    headings = "features", "samples", "deviation", "kernel", "precision", "recall", "density", "coverage"
    print(f"\n| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    for width, count, _, *shape in SETTINGS:
        print(coverage((width, count, 1000, *shape), arguments.trials), flush=True)


if __name__ == "__main__":
    main()
