"""The shipped small classifiers, trained by benchmarks/tools/train_classifier.py.

    digits, fashion-mnist                       `Convolutional`, seed 0
    digits_residual, fashion-mnist_residual     `Residual`, seed 1

The second for each data set can judge what the first may have missed, or what was trained by the first.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

from progdist._utils.files import read_tensors

FEATURES = 64  # numbers in the hidden layer


class Classifier(nn.Module):
    """Classifies images (B, C, H, W) in [-1, 1]: a network down to FEATURES numbers, and a linear read-out."""

    def __init__(self, hidden: nn.Module, classes: int) -> None:
        super().__init__()
        self.hidden, self.read_out = hidden, nn.Linear(FEATURES, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        return self.read_out(self.hidden(images))

    def features(self, images: Tensor) -> Tensor:
        """The scaled hidden layer (B, FEATURES)."""
        return self.scale * self.hidden(images)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of the scaled hidden layer (B, FEATURES)."""
        return self.read_out(features / self.scale)


class Convolutional(Classifier):
    """For images (channels, height, width): three convolutions, the last two halving, and a hidden layer."""

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        channels, height, width = image
        quarter = 64 * -(-height // 4) * -(-width // 4)
        hidden = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(quarter, FEATURES), nn.GELU(),
        )  # fmt: skip
        super().__init__(hidden, classes)


class Block(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))


class Residual(Classifier):
    """For images (channels, height, width): two residual blocks at 16x16 or less and half of that, pooled to 2x2."""

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        channels, height, _ = image
        hidden = nn.Sequential(
            nn.Conv2d(channels, 20, 5, stride=-(-height // 16), padding=2), Block(20), nn.SiLU(),
            nn.Conv2d(20, 40, 3, stride=2, padding=1), Block(40), nn.SiLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(160, FEATURES), nn.SiLU(),
        )  # fmt: skip
        super().__init__(hidden, classes)


@dataclass(frozen=True)
class Shipped:
    """A shipped classifier."""

    image: tuple[int, int, int]  # (channels, height, width) of its input
    network: type[Convolutional | Residual]


CLASSIFIERS = {
    "digits": Shipped((1, 8, 8), Convolutional),
    "digits_residual": Shipped((1, 8, 8), Residual),
    "fashion-mnist": Shipped((1, 28, 28), Convolutional),
    "fashion-mnist_residual": Shipped((1, 28, 28), Residual),
}


def shipped_classifier(name: str) -> Classifier:
    """One of CLASSIFIERS with its weights."""
    with as_file(files("progdist") / "evaluation" / "networks" / "classifiers" / f"{name}.safetensors") as path:
        tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    shipped = CLASSIFIERS[name]
    classifier = shipped.network(shipped.image, len(tensors["read_out.bias"]))
    classifier.load_state_dict(tensors)
    return classifier.eval().requires_grad_(False)
