"""Feature spaces in which sets of images are compared.

digits, fashion-mnist   a small convolutional classifier's last hidden layer (64 numbers), scaled to a mean square of
                        1 over the data; shipped here
NAME_residual           the same, from a residual classifier of either data set, trained with another seed; shipped here
pixels                  the image itself, averaged down to at most 16 x 16
inception               the pool of Inception-v3 (2,048 numbers), resized as TensorFlow 1 and torch-fidelity do
inception_clean         the same, resized as clean-fid does
inception_spatial       its spatial features (2,023 numbers), of sFID, resized as `inception`
dinov2                  the class token of DINOv2 (1,024 numbers), with the extra `dinov2`

The shipped ones and pixels use images unchanged; the others round them to bytes first, as if they had been saved, and
require weights (see `progdist.evaluation.networks.weights`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.names import Features
from progdist.data.images import Images
from progdist.data.shards import TensorShards
from progdist.evaluation.networks import encoders
from progdist.evaluation.networks.classifier import CLASSIFIERS, shipped_classifier
from progdist.evaluation.networks.inception import SIZE, Inception, read_inception
from progdist.evaluation.networks.resize import resize_clean, resize_tensorflow, to_bytes
from progdist.evaluation.networks.weights import find_weights

CHUNK = 64  # images per call of a large network
ROWS = 512  # images per shard of the data's features


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from images (B, C, H, W) in [-1, 1] to vectors (B, D)."""

    name: str  # of the space
    extract: Callable[[Tensor], Tensor]  # the map
    read_out: Callable[[Tensor], Tensor] | None = None  # a classifier's logits (B, classes) from its features (B, D)
    knows_labels: bool = False  # whether that classifier's classes are the data's own
    batch: int = 512  # images per call of `extract`
    checksum: str | None = None  # the SHA-256 of the network's weights, if they are not shipped
    warning: str | None = None  # a warning about the weights, or None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D) on the CPU, computed in batches."""
        return torch.cat([self.extract(part.clamp(-1, 1)).float().cpu() for part in images.split(self.batch)])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor | None:
        """The classifier's logits (N, classes) for features (N, D), or None without a classifier."""
        return None if self.read_out is None else torch.cat([self.read_out(part) for part in features.split(4096)])

    def labels(self, features: Tensor) -> Tensor | None:
        """The classifier's labels (N,) for features (N, D), or None if its classes are not the data's."""
        logits = self.logits(features) if self.knows_labels else None
        return None if logits is None else logits.argmax(1)


def feature_space(name: str, image: tuple[int, ...], weights: Mapping[str, Path] | None = None) -> FeatureSpace:
    """The feature space with a name above, for images (channels, height, width), with files or folders of weights.

    Raise a UserError if the name is unknown, it takes other images, or its weights or its extra are missing.
    """
    if name not in get_args(Features):
        raise UserError(f"features {name!r} are unknown: use one of {', '.join(get_args(Features))}")
    if name == "pixels":
        return FeatureSpace(name, _pixels)
    if name == "dinov2":
        files = find_weights("dinov2", weights or {})
        return FeatureSpace(name, encoders.dinov2(files), batch=CHUNK, checksum=files.sha256, warning=files.warning)
    if name not in CLASSIFIERS:
        return _inception(name, weights or {})
    if (takes := CLASSIFIERS[name].image) != image:
        raise UserError(
            f"features {name!r} require images of {takes} (channels, height, width), the data's are {image}: use "
            "pixels, or that size and those channels"
        )
    classifier = shipped_classifier(name)
    return FeatureSpace(name, classifier.features, classifier.logits, knows_labels=True)


def clip_space(weights: Mapping[str, Path]) -> tuple[FeatureSpace, Callable[[Sequence[str]], Tensor]]:
    """CLIP's image embeddings as a space, and a function that embeds captions; raises as `feature_space` does."""
    files = find_weights("clip", weights)
    embed, embed_texts = encoders.clip(files)
    return FeatureSpace("clip", embed, batch=CHUNK, checksum=files.sha256, warning=files.warning), embed_texts


def write_features(
    spaces: Sequence[FeatureSpace], images: Images, chosen: Tensor, folder: Path, process: int, processes: int
) -> None:
    """Write the missing features of the images at these indices (N,), in a folder of shards per space.

    This process, counted from 0, writes its share of the shards.
    """
    shards = {space: TensorShards(folder / space.name, len(chosen), ROWS) for space in spaces}
    absent = {number for each in shards.values() for number in each.absent()}
    for number, rows in enumerate(chosen.split(ROWS)):
        if number % processes == process and number in absent:
            pixels, _ = images.at(rows)
            for space, each in shards.items():
                each.write(number, [space(pixels)])


def features_of(space: FeatureSpace, images: Images, chosen: Tensor) -> Tensor:
    """The features (N, D) of the images at these indices (N,), with ROWS of them in memory at a time."""
    return torch.cat([space(images.at(rows)[0]) for rows in chosen.split(ROWS)])


def _pixels(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return nn.functional.adaptive_avg_pool2d(images, (min(height, 16), min(width, 16))).flatten(1)


def _inception(name: str, weights: Mapping[str, Path]) -> FeatureSpace:
    """One of Inception-v3's spaces."""
    files = find_weights("inception", weights)
    network: Inception = read_inception(files).to(encoders.device())
    resize = resize_clean if name == "inception_clean" else resize_tensorflow
    place = 1 if name == "inception_spatial" else 0

    def extract(images: Tensor) -> Tensor:
        return network(resize(to_bytes(images.to(encoders.device())), SIZE))[place]

    read_out = None if place else lambda pool: network.logits(pool.to(encoders.device())).cpu()
    return FeatureSpace(name, extract, read_out, batch=CHUNK, checksum=files.sha256, warning=files.warning)
