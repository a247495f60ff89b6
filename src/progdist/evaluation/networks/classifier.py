"""The small classifiers that are shipped, trained by benchmarks/tools/train_classifier.py."""

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

from progdist._utils.files import read_tensors

# the images (channels, height, width) that each shipped classifier takes
CLASSIFIERS: dict[str, tuple[int, int, int]] = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28)}


class Classifier(nn.Module):
    """For images (channels, height, width): three convolutions, the last two halving, a hidden layer and a read-out."""

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image
        quarter = 64 * -(-height // 4) * -(-width // 4)
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(quarter, 64), nn.GELU(),
        )  # fmt: skip
        self.read_out = nn.Linear(64, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        return self.read_out(self.hidden(images))

    def features(self, images: Tensor) -> Tensor:
        """The scaled hidden layer (B, 64)."""
        return self.scale * self.hidden(images)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of the scaled hidden layer (B, 64)."""
        return self.read_out(features / self.scale)


def shipped_classifier(name: str) -> Classifier:
    """One of CLASSIFIERS with its weights."""
    with as_file(files("progdist") / "evaluation" / "networks" / "classifiers" / f"{name}.safetensors") as path:
        tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    classifier = Classifier(CLASSIFIERS[name], len(tensors["read_out.bias"]))
    classifier.load_state_dict(tensors)
    return classifier.eval().requires_grad_(False)
