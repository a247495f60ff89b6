"""What is kept of samples when their images are dropped: features, matches with their labels, the first few images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.features import FeatureSpace


@dataclass(frozen=True)
class Summary:
    """What is kept of samples."""

    features: dict[str, Tensor]  # by feature space, (N, D) on the CPU
    matches: dict[str, int]  # by space with a classifier, how many samples it assigns to their label
    images: Tensor  # the first few images, (B, C, H, W)
    finite: bool  # whether all pixels are finite
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
    """Summarize a batch of samples (B, C, H, W) in about [-1, 1], keeping the first `keep` images.

    The samples were made for labels (B,); the reference is images (B, C, H, W) from the same noise, if any.
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
    """Join the summaries of several batches, in order. Raise a UserError if there are none."""
    every = list(parts)
    if not every:
        raise UserError("no samples were made, expected at least 2: raise the count")
    finite = all(part.finite for part in every)
    return Summary(
        {name: torch.cat([part.features[name] for part in every]) for name in every[0].features},
        {name: sum(part.matches[name] for part in every) for name in every[0].matches} if finite else {},
        torch.cat([part.images for part in every]),
        finite,
        sum(part.squared_error for part in every),
        sum(part.pixels for part in every),
    )
