"""Every recipe of CONTRIBUTING.md, performed on a toy as the guide says."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

import progdist
from progdist import Denoiser, UserError, methods, sample
from progdist.data.images import Images, ImageTransform
from progdist.data.sources import _READERS, load_images
from progdist.diffusion.integrators import runge_kutta
from progdist.diffusion.parameterization import PARAMETERIZATIONS, PREDICTION_TYPES, OneHead
from progdist.diffusion.sampler import NFE_PER_STEP, SAMPLERS, ddim_update, network_evaluations
from progdist.diffusion.schedule import SCHEDULES, VariancePreserving
from progdist.models.networks import NETWORKS
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import NOISES
from progdist.runs.run import open_run
from progdist.teachers import SCHEDULERS
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.checks import (
    check_round_trip,
    check_schedule,
    check_student_lands_where_the_teacher_lands,
    measured_order,
    mixture,
)
from support.commands import SHORT_EVALUATION, SilentCallback, succeeds
from support.heun_method import HEUN, heun_target
from support.paths import ROOT
from support.sample_flow import SAMPLE_FLOW, SampleFlowScheduler
from support.stock import load_ddim, load_unet, stock_network, stock_samples
from support.toys import times

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SHORT = ("distill.chain=[8,4]", "teacher.updates=2", "distill.updates=2", "evaluate.samples=8", "evaluate.resamples=2")


def perform_run(recipe: Recipe, out: Path) -> Denoiser:
    """The student of four steps of a whole run, read from its folder."""
    open_run(recipe, out, SilentCallback()).run()
    return load(out / "student-0004").denoiser


@pytest.mark.parametrize(
    "recipe", ["method", "kind of teacher", "schedule", "parameterization", "data source", "sampler", "network"]
)
def test_the_guide_names_the_file_of_each_recipe(recipe: str) -> None:
    heading = next(line for line in GUIDE.splitlines() if line.startswith(f"## Add a {recipe} (`"))
    assert (ROOT / "src" / "progdist" / heading.split("`")[1]).is_file()


def test_the_layout_names_every_room_and_no_other() -> None:
    layout = GUIDE.split("## The layout", 1)[1].split("\n\n    tests/", 1)[0]
    named = set(re.findall(r"^      (\w+)/? ", layout, re.MULTILINE))
    paths = (ROOT / "src" / "progdist").iterdir()
    rooms = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert named == rooms - {"__main__"}
    for folder in re.findall(r"(\w+)/[ ,;.]", layout.split("_utils/", 1)[1]):
        assert list((ROOT / "src" / "progdist").glob(f"**/{folder}")), folder


def test_the_guide_states_the_layers_that_are_checked() -> None:
    order = GUIDE.split("Imports go in one direction", 1)[1].split("`")[3]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    stated = [set(re.findall(r"\w+", layer)) - {"and"} for layer in order.split("<")]
    assert stated == [set(re.findall(r"\w+", layer)) for layer in reversed(checked[1:])]


def test_every_file_and_function_that_the_guide_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`(?:: `([\w.]+)`)?", GUIDE)
    assert len(named) > 20
    for path, name in named:
        homes = [ROOT / folder / path for folder in ("src/progdist", "tests/support", ".")]
        home = next(home for home in homes if home.is_file())
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b", home.read_text()) or not part, (path, name)


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
    monkeypatch.setitem(NOISES, "slow", lambda noise: Slow())
    check_schedule(Slow())
    assert Slow().alpha(times(0, 1)).tolist() == [1, 0]
    assert Slow().sigma(times(0, 1)).tolist() == [0, 1]
    for substeps in (2, 3):
        check_student_lands_where_the_teacher_lands(Slow(), substeps)
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
    student = perform_run(read_recipe(str(tiny_recipe), [*SHORT, "parameterization=double"]), tmp_path / "run")
    assert isinstance(student.parameterization, Double)
    assert "double" not in PREDICTION_TYPES.values()
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
    monkeypatch.setitem(SAMPLERS, "kutta", kutta)
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
    monkeypatch.setitem(NETWORKS, "ScaledUNet", replace(NETWORKS["UNet2DModel"], network=ScaledUNet))
    folder = tmp_path / "teacher"
    ScaledUNet.from_config(stock_network().config).save_pretrained(folder / "unet")  # pyright: ignore
    DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "ScaledUNet"]}))
    return folder


def test_a_new_network(scaled: Path) -> None:
    teacher = open_teacher(str(scaled))
    assert isinstance(teacher.model.denoiser.network, ScaledUNet)
    assert teacher.model.image == (1, 8, 8)
    noise, scheduler = torch.randn(3, 1, 8, 8), load_ddim(scaled)
    ddim = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)
    theirs = stock_samples(ScaledUNet.from_pretrained(scaled / "unet"), ddim, noise, 8)
    torch.testing.assert_close(sample(teacher.model.denoiser, noise, 8), theirs, rtol=0, atol=1e-4)
    student = progdist.distill(teacher.model.denoiser, noise, [8, 4], updates=1, batch=2)
    assert isinstance(student.network, ScaledUNet)


def test_the_folder_of_a_new_network(scaled: Path, tmp_path: Path) -> None:
    progdist.save(open_teacher(str(scaled)).model.denoiser, tmp_path / "model")
    assert isinstance(load(tmp_path / "model").denoiser.network, ScaledUNet)


@pytest.fixture
def flow_teacher(tmp_path: Path) -> Iterator[Path]:
    """A pipeline folder of the made-up scheduler, which is registered."""
    folder = tmp_path / "teacher"
    stock_network().save_pretrained(folder / "unet")
    SampleFlowScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    SCHEDULERS.append(SAMPLE_FLOW)
    yield folder
    SCHEDULERS.remove(SAMPLE_FLOW)


def flow_samples(network: Any, scheduler: Any, noise: Tensor, steps: int) -> Tensor:  # noqa: ANN401
    """By the made-up scheduler alone."""
    scheduler.set_timesteps(steps)
    z = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            z = scheduler.step(network(z, timestep.float()).sample, timestep, z).prev_sample
    return z


def test_a_new_kind_of_teacher(flow_teacher: Path, tmp_path: Path) -> None:
    """One new file, tests/support/sample_flow.py: its folder is opened, distilled, and its students written alike."""
    teacher, noise = open_teacher(str(flow_teacher)).model, torch.randn(3, 1, 8, 8)
    stock = flow_samples(load_unet(flow_teacher), SampleFlowScheduler(), noise, 8)
    torch.testing.assert_close(sample(teacher.denoiser, noise, 8), stock, rtol=0, atol=1e-5)
    settings = ("--set", "teacher.trust=true", "--set", "distill.precision=float32", "--start", 8, "--steps", 4)
    training = ("--updates", 2, "--batch", 8, *SHORT_EVALUATION)
    succeeds("distill", flow_teacher, "--data", "digits", "--out", tmp_path / "run", *settings, *training)
    student = tmp_path / "run" / "student-0004"
    scheduler: Any = SampleFlowScheduler.from_pretrained(student, subfolder="scheduler")
    assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]
    ours = sample(load(student).denoiser, noise, 4)
    torch.testing.assert_close(ours, flow_samples(load_unet(student), scheduler, noise, 4), rtol=0, atol=1e-5)
    assert not (tmp_path / "run" / "converted").exists()  # it needs no stage 0
    assert load(student).denoiser.parameterization == teacher.denoiser.parameterization


def test_what_a_new_kind_of_teacher_refuses(flow_teacher: Path) -> None:
    config = flow_teacher / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "invert_sigmas": True}))
    with pytest.raises(UserError, match="invert_sigmas"):
        open_teacher(str(flow_teacher))
    SCHEDULERS.remove(SAMPLE_FLOW)
    try:
        with pytest.raises(UserError, match="has scheduler SampleFlowScheduler, expected one of DDPMScheduler"):
            open_teacher(str(flow_teacher))
    finally:
        SCHEDULERS.append(SAMPLE_FLOW)


def test_a_new_methods_target_lands_where_it_says() -> None:
    """One DDIM step with the target is Heun's step of the exact teacher, and at s = 0 its prediction."""
    for schedule in (progdist.Cosine(), progdist.RectifiedFlow()):
        teacher, z = mixture(schedule), torch.randn(8, 2, dtype=torch.float64)
        t = torch.arange(1, 9, dtype=torch.float64) / 8
        s = t - 1 / 8
        target = heun_target(teacher, z, t, s)
        assert torch.equal(target[0], teacher(z, t)[0])
        z, t, s = z[1:], t[1:], s[1:]
        (alpha, sigma), (alpha_s, sigma_s) = ((each.numpy()[:, None] for each in schedule.scales(at)) for at in (t, s))
        slope = teacher(z, t).numpy()
        predicted = sigma_s * (z.numpy() / sigma + (alpha_s / sigma_s - alpha / sigma) * slope)
        mean = (slope + teacher(torch.from_numpy(predicted), s).numpy()) / 2
        heun = sigma_s * (z.numpy() / sigma + (alpha_s / sigma_s - alpha / sigma) * mean)
        np.testing.assert_allclose(ddim_update(schedule, z, target[1:], t, s).numpy(), heun, rtol=0, atol=1e-12)


def test_a_new_method(
    tiny_recipe: Path, tiny_model: Callable[..., Denoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One new file, tests/support/heun_method.py: recipes, the call, cards and reports know it by its name."""
    with pytest.raises(UserError, match="'heun' is unknown"):
        read_recipe(str(tiny_recipe), [*SHORT, "distill.method=heun"])
    monkeypatch.setitem(methods.METHODS, "heun", HEUN)
    perform_run(read_recipe(str(tiny_recipe), [*SHORT, "distill.method=heun"]), tmp_path / "run")
    assert load(tmp_path / "run" / "student-0004").method == "heun"
    assert HEUN.title in (tmp_path / "run" / "student-0004" / "README.md").read_text()
    assert HEUN.title in (tmp_path / "run" / "report.html").read_text()
    teacher, options = tiny_model(), dict[str, Any](updates=2, batch=4)
    students = [
        progdist.distill(teacher, torch.ones(8, 1, 8, 8), [4, 2], method=method, **options)
        for method in ("heun", HEUN, "progressive")
    ]
    named, own, other = (next(iter(student.parameters())) for student in students)
    assert torch.equal(named, own)
    assert not torch.equal(named, other)
