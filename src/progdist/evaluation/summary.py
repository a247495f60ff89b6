"""What is kept of samples once their images are dropped: features, matches with their labels, the first few images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.features import FeatureSpace


@dataclass(frozen=True)
class Summary:
    """What is kept of samples."""

    features: dict[str, Tensor]  # in each feature space, by its name, (N, D) on the CPU
    matches: dict[str, int]  # by space with a classifier, how many samples it gives the label they were made for
    images: Tensor  # the first few images, (B, C, H, W)
    finite: bool  # whether all pixels are
    squared_error: float  # the sum of squared differences from the reference, both clipped to [-1, 1]; 0 without one
    pixels: int  # how many numbers the images held

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.features.values())))

    @property
    def rmse(self) -> float:
        """The root mean square difference from the reference."""
        return (self.squared_error / self.pixels) ** 0.5


def summarize(
    spaces: Sequence[FeatureSpace],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    reference: Tensor | None = None,
    keep: int = 0,
) -> Summary:
    """Summarize a batch of samples (B, C, H, W) in about [-1, 1], of which the first `keep` are kept as they are.

    They were made for labels (B,); the reference is of images (B, C, H, W) from the same noise, where there are any.
    """
    finite = bool(images.isfinite().all())
    features = {space.name: space(images) for space in spaces}
    named = {space.name: space.labels(features[space.name]) for space in spaces if labels is not None and finite}
    matches = {name: int((predicted == labels).sum()) for name, predicted in named.items() if predicted is not None}
    error = 0.0
    if reference is not None:
        error = float((images.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().sum())
    return Summary(features, matches, images[:keep].clone(), finite, error, images.numel())


def join(parts: Iterable[Summary]) -> Summary:
    """One summary of several batches, in their order; a UserError where there are none."""
    every = list(parts)
    if not every:
        raise UserError("no samples were made: ask for at least 2")
    finite = all(part.finite for part in every)
    return Summary(
        {name: torch.cat([part.features[name] for part in every]) for name in every[0].features},
        {name: sum(part.matches[name] for part in every) for name in every[0].matches} if finite else {},
        torch.cat([part.images for part in every]),
        finite,
        sum(part.squared_error for part in every),
        sum(part.pixels for part in every),
    )
