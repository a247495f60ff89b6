"""What several tests need: exact denoisers, a tiny model, a tiny recipe."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # every number here is of a CPU
os.environ["OMP_NUM_THREADS"] = "1"  # the tests themselves run side by side

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from typer.testing import CliRunner, Result

from progdist import Cosine, Denoiser
from progdist.cli.app import app
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Schedule
from progdist.models.unet import unet

torch.set_flush_denormal(True)  # as the commands do

TINY = """
name: tiny
data: {source: digits}
network: {width: 8, multipliers: [1, 2], groups: 4}
teacher: {updates: 12, batch: 8, learning_rate: 1.0e-3, warmup: 2, ema: 0.9, checkpoint_every: 4, precision: float32}
distill: {start: 8, end: 1, updates: 3, batch: 8, learning_rate: 1.0e-3, checkpoint_every: 2, precision: float32}
evaluate: {samples: 96, features: [digits, pixels], resamples: 4, precision: float32}
"""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny_model() -> Callable[..., Denoiser]:
    """Make a small U-Net whose last layers are not zero, around any schedule and parameterization."""

    def build(schedule: Schedule | None = None, kind: str = "v", classes: int = 0, timesteps: int = 1024) -> Denoiser:
        parameterization = PARAMETERIZATIONS[kind]
        network = unet(
            image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4, classes=classes, heads=parameterization.heads
        )
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return Denoiser(network.eval(), schedule or Cosine(), parameterization, timesteps=timesteps)

    return build


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def name(value: object) -> str:
    """A short name for a parameter of a test."""
    return value if isinstance(value, str) else type(value).__name__


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


class SilentCallback:
    """An callback that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, title: str, updates: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def end(self) -> None: ...
    def evaluated(self, record: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def stock_network(classes: int | None = None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=classes,
    ).eval()


Stock = Callable[..., Path]


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    """Write a pipeline folder with stock code alone."""

    def write(scheduler: Any = None, classes: int | None = None) -> Path:  # noqa: ANN401
        place = tmp_path / "stock"
        DDPMPipeline(stock_network(classes), scheduler or DDPMScheduler()).save_pretrained(place)
        return place

    return write
