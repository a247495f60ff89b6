"""Fixtures of several wings, and the devices that tests see."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # the tests themselves run side by side
os.environ["HF_HUB_OFFLINE"] = "1"  # what is asked of the hub fails at once

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from typer.testing import Result

from progdist import Cosine, Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Schedule
from progdist.models.unet import unet
from progdist.runs.estimate.cost import Rates
from support.commands import TINY, succeeds
from support.latent import SAVE, distill_latent
from support.stock import SaveStock, stock_network

torch.set_flush_denormal(True)  # as the commands do

HAS_CUDA = torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not HAS_CUDA:
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _cpu() -> Iterator[None]:
    """Whatever chooses its device chooses the CPU, whose numbers most tests hold; tests marked cuda name theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP as a terminal's program has it, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The class-conditional run of the tiny recipe, and what the command printed. Tests leave the folder as it is."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    return out, succeeds("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true")


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    """What costs are estimated from, in place of measurements on this machine, which take seconds."""
    rates = Rates(evaluation=0.5, training=2.0, optimizer=0.25)
    for module in ("progdist.runs.estimate.cost", "progdist.cli.doctor"):
        monkeypatch.setattr(f"{module}.measure", lambda *arguments: rates)
    return rates


@pytest.fixture
def tiny_model() -> Callable[..., Denoiser]:
    """Make a small U-Net whose last layers are not zero, around any schedule and parameterization."""

    def build(
        schedule: Schedule | None = None, parameterization: str = "v", classes: int = 0, num_train_timesteps: int = 1024
    ) -> Denoiser:
        output = PARAMETERIZATIONS[parameterization]
        network = unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4, classes=classes, heads=output.heads)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return Denoiser(network.eval(), schedule or Cosine(), output, num_train_timesteps=num_train_timesteps)

    return build


@pytest.fixture
def stock(tmp_path: Path) -> SaveStock:
    """Write a pipeline folder with stock code alone."""

    def write(scheduler: Any = None, classes: int | None = None) -> Path:  # noqa: ANN401
        folder = tmp_path / "stock"
        DDPMPipeline(stock_network(classes), scheduler or DDPMScheduler()).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(params=SAVE)
def latent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stock pipeline folder of a latent model of 8x8 images."""
    return SAVE[request.param](tmp_path / request.param)


@pytest.fixture(scope="session", params=SAVE)
def latent_student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of four steps of a latent model. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("latent")
    return distill_latent(SAVE[request.param](folder / request.param), folder / "out")
