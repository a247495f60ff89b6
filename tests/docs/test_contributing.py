"""Every recipe of CONTRIBUTING.md, performed on a toy as the guide says."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import BaseModel
from torch import Tensor

import progdist
from progdist import Denoiser, UserError, sample
from progdist.data.images import Images, ImageTransform
from progdist.data.sources import _READERS, load_images
from progdist.diffusion.integrators import runge_kutta
from progdist.diffusion.parameterization import PARAMETERIZATIONS, OneHead
from progdist.diffusion.sampler import METHODS, NFE_PER_STEP, network_evaluations
from progdist.diffusion.schedule import SCHEDULES, VariancePreserving
from progdist.models.model import PREDICTION_TYPES
from progdist.models.safe_loading import NETWORKS
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Noise
from progdist.runs.run import open_run
from progdist.students.folder import load
from progdist.teachers.open import read_teacher
from support.checks import check_round_trip, check_schedule, check_student_lands_where_the_teacher_lands, measured_order
from support.commands import SilentCallback, succeeds
from support.paths import ROOT
from support.stock import load_ddim, load_unet, stock_network, stock_samples
from support.toys import times

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SHORT = ("distill.chain=[8,4]", "teacher.updates=2", "distill.updates=2", "evaluate.samples=8", "evaluate.resamples=2")


@contextmanager
def accepted(model: type[BaseModel], field: str, value: str) -> Iterator[None]:
    """As if the name were written into the Literal of a recipe's field."""
    known = model.model_fields[field].annotation
    try:
        model.model_fields[field].annotation = Literal[(*get_args(known), value)]  # pyright: ignore
        for part in (model, Recipe):
            part.model_rebuild(force=True)
        yield
    finally:
        model.model_fields[field].annotation = known
        for part in (model, Recipe):
            part.model_rebuild(force=True)


def perform_run(recipe: Recipe, out: Path) -> Denoiser:
    """The student of four steps of a whole run, read from its folder."""
    open_run(recipe, out, SilentCallback()).run()
    return load(out / "student-0004").denoiser


@pytest.mark.parametrize("recipe", ["schedule", "parameterization", "data source", "sampler", "network"])
def test_the_guide_names_the_file_of_each_recipe(recipe: str) -> None:
    heading = next(line for line in GUIDE.splitlines() if line.startswith(f"## A new {recipe} (`"))
    assert (ROOT / "src" / "progdist" / heading.split("`")[1]).is_file()


@dataclass(frozen=True)
class Slow(VariancePreserving):
    """phi = pi/2 t^power: the noise rises late."""

    name: ClassVar[str] = "slow"
    power: float = 1.5

    def angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        phi = math.pi / 2 * t.double() ** self.power
        return phi, math.pi / 2 - phi


def test_a_new_schedule(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "slow", Slow)
    build = Noise.build
    monkeypatch.setattr(Noise, "build", lambda self: Slow() if self.kind == "slow" else build(self))
    check_schedule(Slow())
    assert Slow().alpha(times(0, 1)).tolist() == [1, 0]
    assert Slow().sigma(times(0, 1)).tolist() == [0, 1]
    for substeps in (2, 3):
        check_student_lands_where_the_teacher_lands(Slow(), substeps)
    with accepted(Noise, "kind", "slow"):
        student = perform_run(read_recipe(str(tiny_recipe), [*SHORT, "noise.kind=slow"]), tmp_path / "run")
    assert student.schedule == Slow()
    noise, folder = torch.randn(3, 1, 8, 8), tmp_path / "run" / "student-0004"
    theirs = stock_samples(load_unet(folder), load_ddim(folder), noise, 4)
    torch.testing.assert_close(sample(student, noise, 4), theirs, rtol=0, atol=1e-4)


class Double(OneHead):
    """F ~ 2 x."""

    name: ClassVar[str] = "double"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.full_like(alpha, 0.5)

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 2 * x


def test_a_new_parameterization(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETERIZATIONS, "double", Double())
    check_round_trip(progdist.Cosine(), Double())
    with accepted(Recipe, "parameterization", "double"):
        recipe = read_recipe(str(tiny_recipe), [*SHORT, "parameterization=double"])
        student = perform_run(recipe, tmp_path / "run")
    assert isinstance(student.parameterization, Double)
    assert "double" not in PREDICTION_TYPES
    assert not (tmp_path / "run" / "student-0004" / "scheduler").exists()  # diffusers does not know it
    assert sample(student, torch.randn(2, 1, 8, 8), 4).isfinite().all()


def read_text_images(path: str, transform: ImageTransform) -> Images:
    """Images of a text file, one line of numbers from 0 to 1 for each; they are square."""
    try:
        pixels = torch.from_numpy(np.loadtxt(path, dtype=np.float32, ndmin=2))
    except (OSError, ValueError) as error:
        raise UserError(f"text:{path} cannot be read ({error}): write numbers from 0 to 1") from error
    side = math.isqrt(pixels.shape[1])
    images = 2 * pixels.reshape(-1, 1, side, side) - 1
    return Images(f"text:{path}", len(images), images.__getitem__, None)


def test_a_new_data_source(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_READERS, "text", read_text_images)
    pixels = np.random.default_rng(0).uniform(0, 1, (12, 64))
    np.savetxt(tmp_path / "images.txt", pixels)
    images = load_images(f"text:{tmp_path}/images.txt")
    assert (len(images), images.shape) == (12, (1, 8, 8))
    np.testing.assert_allclose(images[5][0].flatten(), 2 * pixels[5] - 1, atol=1e-6)
    data = f"data.source=text:{tmp_path}/images.txt"
    perform_run(read_recipe(str(tiny_recipe), [*SHORT, data, "evaluate.features=[pixels]"]), tmp_path / "run")
    (tmp_path / "damaged.txt").write_text("0.5 none")
    with pytest.raises(UserError, match=r"text:.*damaged\.txt cannot be read"):
        load_images(f"text:{tmp_path}/damaged.txt")
    with pytest.raises(UserError, match="text:PATH"):
        load_images("unheard-of")


def test_a_new_sampler(tiny_model: Callable[..., Denoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kutta's method: of the third order, with three evaluations to a step."""
    kutta = runge_kutta([(), (0.5,), (-1.0, 2.0)], [1 / 6, 2 / 3, 1 / 6])
    monkeypatch.setitem(METHODS, "kutta", kutta)
    monkeypatch.setitem(NFE_PER_STEP, "kutta", 3)
    for schedule in (progdist.Cosine(), progdist.RectifiedFlow()):
        assert measured_order(schedule, lambda: kutta, [16, 32, 64, 128]) == pytest.approx(3, abs=0.15)
    assert network_evaluations(5, "kutta") == 13
    progdist.save(tiny_model(), tmp_path / "model", steps=[4])
    succeeds("sample", tmp_path / "model", "-n", 2, "--method", "kutta", "--out", tmp_path / "images.safetensors")
    with pytest.raises(UserError, match="kutta"):
        sample(tiny_model(), torch.randn(1, 1, 8, 8), 2, method="unheard-of")


class ScaledUNet(UNet2DModel):
    """A U-Net whose output is halved."""

    def forward(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        output: Any = super().forward(*arguments, **options)
        return type(output)(output.sample / 2)


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline folder of the new network, which is registered."""
    monkeypatch.setitem(NETWORKS, "ScaledUNet", ScaledUNet)
    folder = tmp_path / "teacher"
    ScaledUNet.from_config(stock_network().config).save_pretrained(folder / "unet")  # pyright: ignore
    DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "ScaledUNet"]}))
    return folder


def test_a_new_network(scaled: Path) -> None:
    teacher = read_teacher(str(scaled))
    assert isinstance(teacher.model.denoiser.network, ScaledUNet)
    assert teacher.model.image == (1, 8, 8)
    noise, scheduler = torch.randn(3, 1, 8, 8), load_ddim(scaled)
    ddim = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)
    theirs = stock_samples(ScaledUNet.from_pretrained(scaled / "unet"), ddim, noise, 8)
    torch.testing.assert_close(sample(teacher.model.denoiser, noise, 8), theirs, rtol=0, atol=1e-4)
    student = progdist.distill(teacher.model.denoiser, noise, [8, 4], updates=1, batch=2)
    assert isinstance(student.network, ScaledUNet)


def test_the_folder_of_a_new_network(scaled: Path, tmp_path: Path) -> None:
    progdist.save(read_teacher(str(scaled)).model.denoiser, tmp_path / "model")
    assert isinstance(load(tmp_path / "model").denoiser.network, ScaledUNet)
