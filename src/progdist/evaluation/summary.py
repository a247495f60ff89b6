"""What is kept of samples once their images are dropped: features, matches with their labels, the first few images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.features import FeatureSpace


@dataclass(frozen=True)
class Summary:
    """What is kept of samples.

    Attributes:
        features: in each feature space, by its name, (N, D) on the CPU.
        matches: by the name of each space with a classifier, how many samples it gives the label they were made for.
        images: the first few images, (B, C, H, W).
        finite: whether all pixels are.
        squared_error: the sum of squared differences from the reference, both clipped to [-1, 1]; 0 without one.
        pixels: how many numbers the images held.
    """

    features: dict[str, Tensor]
    matches: dict[str, int]
    images: Tensor
    finite: bool
    squared_error: float
    pixels: int

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
    """Summarize one batch of samples.

    Args:
        spaces: where to look at them.
        images: (B, C, H, W), about [-1, 1].
        labels: the classes that they were made for, (B,), or None.
        reference: images (B, C, H, W) from the same noise.
        keep: how many images to keep as they are.
    """
    finite = bool(images.isfinite().all())
    features = {space.name: space(images) for space in spaces}
    named = {space.name: space.labels(features[space.name]) for space in spaces if labels is not None and finite}
    matches = {name: int((found == labels).sum()) for name, found in named.items() if found is not None}
    error = 0.0
    if reference is not None:
        error = float((images.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().sum())
    return Summary(features, matches, images[:keep].clone(), finite, error, images.numel())


def join(parts: Iterable[Summary]) -> Summary:
    """One summary of several batches, in their order.

    Raises:
        UserError: there are none.
    """
    every = list(parts)
    if not every:
        raise UserError("no samples were made: ask for at least 2")
    names = every[0].features
    return Summary(
        {name: torch.cat([part.features[name] for part in every]) for name in names},
        {name: sum(part.matches[name] for part in every) for name in every[0].matches} if _finite(every) else {},
        torch.cat([part.images for part in every]),
        _finite(every),
        sum(part.squared_error for part in every),
        sum(part.pixels for part in every),
    )


def _finite(parts: Sequence[Summary]) -> bool:
    return all(part.finite for part in parts)
