"""Feature spaces in which sets of images are compared.

digits, fashion-mnist   a small convolutional classifier's last hidden layer (64 numbers), scaled to a mean square of
                        1 over the data; shipped here, trained by benchmarks/train_classifier.py
pixels                  the image itself, averaged down to at most 16 x 16
inception               the pool of Inception-v3 (2,048 numbers), with the extra `inception` and its weights
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_tensors
from progdist.data.images import Images
from progdist.data.shards import TensorShards

CLASSIFIERS: dict[str, tuple[int, int, int]] = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28)}
"""The images (channels, height, width) that each shipped classifier takes."""


class Classifier(nn.Module):
    """Three convolutions, the last two halving, then a hidden layer of 64 and a linear read-out.

    Args:
        image: (channels, height, width).
        classes: number of classes.
    """

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image
        quarter = 64 * -(-height // 4) * -(-width // 4)
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(quarter, 64),
            nn.GELU(),
        )
        self.read_out = nn.Linear(64, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        return self.read_out(self.hidden(images))

    def features(self, images: Tensor) -> Tensor:
        """The scaled hidden layer (B, 64)."""
        return self.scale * self.hidden(images)


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from images (B, C, H, W) in [-1, 1] to vectors (B, D); with a classifier, labels (B,), too."""

    name: str
    extract: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 512) -> Tensor:
        """Features (N, D) on the CPU, computed in batches."""
        return torch.cat([self.extract(part.clamp(-1, 1)).float().cpu() for part in images.split(batch)])

    @torch.no_grad()
    def labels(self, images: Tensor, batch: int = 512) -> Tensor | None:
        """The classifier's labels (N,), or None where there is none."""
        if self.classify is None:
            return None
        return torch.cat([self.classify(part.clamp(-1, 1)).argmax(1).cpu() for part in images.split(batch)])


def feature_space(name: str, image: tuple[int, int, int]) -> FeatureSpace:
    """A feature space for images (channels, height, width).

    Raises:
        UserError: there is none of that name, it takes other images, or the extra is missing.
    """
    if name == "pixels":
        return FeatureSpace(name, _pixels)
    if name == "inception":
        return FeatureSpace(name, _inception())
    if name not in CLASSIFIERS:
        raise UserError(f"features {name!r} are unknown: use one of {', '.join([*CLASSIFIERS, 'pixels', 'inception'])}")
    if CLASSIFIERS[name] != image:
        raise UserError(
            f"features {name!r} are of images {CLASSIFIERS[name]} (channels, height, width), the data's are {image}: "
            "use pixels, or the size and channels that they take"
        )
    classifier = _shipped(name)
    return FeatureSpace(name, classifier.features, classifier)


ROWS = 512
"""Images whose features are in one shard of the data's features."""


def write_features(
    spaces: Sequence[FeatureSpace], images: Images, chosen: Tensor, folder: Path, process: int, processes: int
) -> None:
    """Write one process's share of the features of some images, those that are not there yet.

    Args:
        spaces: every one has a folder of shards.
        images: where they come from.
        chosen: their indices (N,).
        folder: of the folders.
        process: number of this process, from 0.
        processes: how many share the work.
    """
    shards = {space: TensorShards(folder / space.name, len(chosen), ROWS) for space in spaces}
    absent = {number for each in shards.values() for number in each.absent()}
    for number, rows in enumerate(chosen.split(ROWS)):
        if number % processes == process and number in absent:
            pixels, _ = images.at(rows)
            for space, each in shards.items():
                each.write(number, [space(pixels)])


def features_of(space: FeatureSpace, images: Images, chosen: Tensor) -> Tensor:
    """The features (N, D) of the images of some indices (N,), of which ROWS are in memory at a time."""
    return torch.cat([space(images.at(rows)[0]) for rows in chosen.split(ROWS)])


def _shipped(name: str) -> Classifier:
    with as_file(files("progdist") / "evaluation" / "classifiers" / f"{name}.safetensors") as path:
        tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    classifier = Classifier(CLASSIFIERS[name], len(tensors["read_out.bias"]))
    classifier.load_state_dict(tensors)
    return classifier.eval().requires_grad_(False)


def _pixels(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return nn.functional.adaptive_avg_pool2d(images, (min(height, 16), min(width, 16))).flatten(1)


def _inception() -> Callable[[Tensor], Tensor]:
    from torchmetrics.image.fid import NoTrainInceptionV3  # needs the extra: only where it is used

    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (ModuleNotFoundError, OSError) as error:
        raise UserError(
            f"features 'inception' cannot be had ({' '.join(str(error).split())}): "
            "pip install 'progdist[inception]' and let it fetch its weights once"
        ) from error

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    def extract(images: Tensor) -> Tensor:
        pixels = ((images.to(device) + 1) * 127.5).round().byte()
        return cast(Tensor, network(pixels.expand(-1, 3, -1, -1)))

    return extract
