"""How many samples a Frechet distance needs: its interval and bias by number of samples.

    python benchmarks/experiments/samples_needed.py digits --features digits
    python benchmarks/experiments/samples_needed.py idx:/usr/share/datasets/fashion-mnist --features fashion-mnist

A random half of the data is the reference. The other half stands for a model's samples, once as it is and, since a
model is farther away than data are from data, with Gaussian noise of some deviations on its pixels. Sets of n rows are
drawn from it with repeats, as a model draws from its distribution, and their distances to the reference give the 95 %
interval of one distance, as half its width over the mean, and the bias, the mean less the distance of the whole half.
With --models the samples of models take the place of the second half, and all data are the reference. The last column
is the n whose interval is within 10 %, by a deviation that falls as 1 / sqrt(n) from the largest n.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.evaluation.features import FeatureSpace, feature_space, features_of
from progdist.evaluation.generate import SamplingOptions, generate_batches
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.moments import Moments, moments
from progdist.teachers.own import load


def stand_ins(
    images: Images, space: FeatureSpace, deviations: list[float]
) -> tuple[Moments, Iterator[tuple[str, Tensor]]]:
    """The reference, and features (N, D) of every set that stands for samples, by its name."""
    first, second = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tensor_split(2)
    reference = moments(features_of(space, images, first))

    def sets() -> Iterator[tuple[str, Tensor]]:
        draw = torch.Generator().manual_seed(1)
        for deviation in deviations:
            parts = []
            for rows in second.split(2048):
                pixels = images.at(rows)[0]
                parts.append(space(pixels + deviation * torch.randn(pixels.shape, generator=draw)))
            yield f"data, noise of {deviation:g}", torch.cat(parts)

    return reference, sets()


def made(folder: Path, steps: int | None, count: int, space: FeatureSpace) -> Tensor:
    """Features of a model's samples."""
    batches, _ = generate_batches(load(folder), SamplingOptions(steps, count, None, 0, batch=500), print)
    return torch.cat([space(images) for _, images, _ in batches])


def row(name: str, distance: Frechet, features: Tensor, counts: list[int], draws: int) -> str:
    """One line of the table."""
    whole, draw, cells, last = distance(moments(features)), torch.Generator().manual_seed(2), [], 0.0
    for count in counts:
        chosen = (torch.randint(len(features), (count,), generator=draw) for _ in range(draws))
        values = torch.tensor([distance(moments(features[rows])) for rows in chosen], dtype=torch.float64)
        low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        mean = float(values.mean())
        last = (high - low) / 2 / mean
        cells.append(f"{mean:.3f} ± {100 * last:.0f} % (bias {mean - whole:+.3f})")
    return f"| {name} | {whole:.3f} | " + " | ".join(cells) + f" | {counts[-1] * (last / 0.1) ** 2:,.0f} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--counts", type=int, nargs="+", default=[640, 1797, 5000, 10_000, 20_000])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=[], help="FOLDER or FOLDER@STEPS")
    parser.add_argument("--made", type=int, default=20_000, help="samples of a model to draw from")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    images = load_images(arguments.data)
    space = feature_space(arguments.features, images.shape)
    print("| samples | distance of all | " + " | ".join(f"n = {n:,}" for n in arguments.counts) + " | n for 10 % |")
    print("|---" * (len(arguments.counts) + 3) + "|")
    if arguments.models:
        whole = Frechet(moments(features_of(space, images, torch.arange(len(images)))))
        for word in arguments.models:
            folder, _, steps = word.partition("@")
            features = made(Path(folder), int(steps) if steps else None, arguments.made, space)
            print(row(word, whole, features, arguments.counts, arguments.draws), flush=True)
        return
    reference, sets = stand_ins(images, space, arguments.noise)
    for name, features in sets:
        print(row(name, Frechet(reference), features, arguments.counts, arguments.draws), flush=True)


if __name__ == "__main__":
    main()
