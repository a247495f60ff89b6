"""EDM's stock schedulers: teachers are read as stock code samples them, and students' schedulers visit our grids."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LDMPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

import progdist
from progdist import Denoiser, Karras, UserError, sample
from progdist.diffusion.sampler import time_grid
from progdist.evaluation.generate import sampling_noise
from progdist.methods.guidance import Thresholded
from progdist.students.folder import save
from progdist.teachers import SCHEDULERS
from progdist.teachers.edm import write
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.teachers.schedulers import Formulation, read_formulation
from support.commands import SHORT_EVALUATION, UNTRAINED, succeeds
from support.latent import AUTOENCODER
from support.stock import SaveStock, load_unet, stock_network, stock_samples, stock_steps
from support.text import PROMPTS, stock_pipeline, text_student, write_sdxl
from support.toys import times

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of stock code

SIGMA_MAX = 20.0
"""Latents of stock code are noise of this size in float32, which the differences below are of."""


CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}


def formulation(name: str, **fields: Any) -> Formulation:  # noqa: ANN401
    return read_formulation(SCHEDULERS, Path("folder"), {"_class_name": name, **fields})


class Fixed(torch.nn.Module):
    """A network that says the same of everything, and remembers what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = torch.nn.Parameter(output)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        self.asked = z, timestep
        return self.output


def check_denoised(found: Formulation, scheduler: Any, levels: Tensor) -> None:  # noqa: ANN401
    """At every level a network is asked what the scheduler asks it, and denoises as it does."""
    x, network = torch.randn(2, 1, 8, 8), Fixed(torch.randn(2, 1, 8, 8))
    denoiser = Denoiser(
        network,
        found.schedule,
        found.parameterization,
        num_train_timesteps=found.num_train_timesteps,
        offset=found.offset,
    )
    for place, t in enumerate(scheduler.timesteps):
        level = scheduler.sigmas[place]
        torch.testing.assert_close(level.double(), levels[place], rtol=1e-6, atol=0)
        scaled = scheduler.scale_model_input(level * x, t)
        theirs = scheduler.step(network.output.detach(), t, level * x).pred_original_sample
        time = time_of(found.schedule, levels[place])
        ours = denoiser(level * x * found.schedule.alpha(time).float(), time).detach()
        torch.testing.assert_close(network.asked[0], scaled, rtol=0, atol=1e-5)
        torch.testing.assert_close(network.asked[1], t.expand(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def time_of(schedule: Any, level: Tensor) -> Tensor:  # noqa: ANN401
    """The t at which EDM's noise has a level."""
    if schedule.power == math.inf:
        return (level / schedule.sigma_min).log() / math.log(schedule.sigma_max / schedule.sigma_min)
    root, low, high = ((each) ** (1 / schedule.power) for each in (level, schedule.sigma_min, schedule.sigma_max))
    return (root - low) / (high - low)


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 3.0])
def test_a_teacher_of_edm_is_what_its_scheduler_makes_of_it(
    prediction_type: str, sigma_schedule: str, sigma_data: float
) -> None:
    fields = {"prediction_type": prediction_type, "sigma_schedule": sigma_schedule, "sigma_data": sigma_data}
    fields |= {"sigma_min": 0.01, "sigma_max": SIGMA_MAX, "rho": 5.0}
    found, scheduler = formulation("EDMEulerScheduler", **fields), EDMEulerScheduler(**fields)
    power = 5.0 if sigma_schedule == "karras" else math.inf
    assert found.schedule == Karras(0.01, SIGMA_MAX, power, sigma_data)
    assert formulation("EDMDPMSolverMultistepScheduler", **fields) == found
    scheduler.set_timesteps(7)
    check_denoised(found, scheduler, found.schedule.level(torch.linspace(1, 0, 7).double()))


@pytest.mark.parametrize("grid", ["use_karras_sigmas", "use_exponential_sigmas", None])
def test_continuous_timesteps_of_v_are_edms_of_deviation_1(grid: str | None) -> None:
    fields = {**CONTINUOUS, "beta_schedule": "scaled_linear"}
    fields |= {grid: True, "sigma_min": 0.01, "sigma_max": SIGMA_MAX} if grid else {}
    found, scheduler = formulation("EulerDiscreteScheduler", **fields), EulerDiscreteScheduler(**fields)
    assert found.notes == ()
    scheduler.set_timesteps(7)
    if grid:
        assert found.schedule == Karras(0.01, SIGMA_MAX, 7.0 if grid == "use_karras_sigmas" else math.inf, 1.0)
    ends = [float(scheduler.sigmas[place]) for place in (0, -2)]
    assert [float(level) for level in found.schedule.level(times(1, 0))] == pytest.approx(ends, rel=1e-5)
    check_denoised(found, scheduler, scheduler.sigmas.double())


def test_continuous_timesteps_of_another_output_are_those_of_a_table() -> None:
    """As stock code has them, which gives a network log(sigma) / 4 for v alone."""
    found = formulation("EulerDiscreteScheduler", timestep_type="continuous")
    assert found == formulation("EulerDiscreteScheduler")
    scheduler = EulerDiscreteScheduler(timestep_type="continuous", timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_a_network_that_receives_an_angle() -> None:
    """Stable Audio's: what its config does not say is the default of a class that diffusers hides without torchsde."""
    found = formulation("CosineDPMSolverMultistepScheduler")
    assert found.schedule == Karras(0.3, 500.0, math.inf, 1.0, c_noise="atan")
    assert found.parameterization.name == "v"
    network = Fixed(torch.zeros(2, 1, 8, 8))
    Denoiser(network, found.schedule, "v")(torch.zeros(2, 1, 8, 8), times(1)[0])
    assert network.asked[1].tolist() == pytest.approx([2 * math.atan(500) / math.pi] * 2)
    assert write(Denoiser(network, found.schedule, "v"), 4) is None


def test_thresholds_are_kept() -> None:
    found = formulation("EDMDPMSolverMultistepScheduler", thresholding=True, sample_max_value=2.0)
    limited: Any = found.limited(Denoiser(torch.nn.Identity(), found.schedule, "edm"))
    assert isinstance(limited, Thresholded)
    assert limited.max_value == 2


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "EDMEulerScheduler",
            {"prediction_type": "sample"},
            "prediction_type is 'sample', expected one of epsilon, v_p",
        ),
        ("EDMEulerScheduler", {"sigma_schedule": "beta"}, "sigma_schedule is 'beta', expected one of karras, exp"),
        ("EDMEulerScheduler", {"sigma_schedule": ["karras"]}, "sigma_schedule"),
        ("EDMEulerScheduler", {"sigma_data": 0}, "damaged .*sigma_data is 0"),
        ("EDMEulerScheduler", {"sigma_min": 100}, "damaged .*expected positive numbers sigma_min < sigma_max"),
        ("EDMEulerScheduler", {"sigma_max": "80"}, "damaged .*sigma_max: 80"),
        ("EDMEulerScheduler", {"rho": True}, "damaged .*rho: True"),
        ("EDMEulerScheduler", {"rho": 10**400}, "damaged"),
        ("EDMEulerScheduler", {"sigma_max": math.nan}, "damaged"),
        ("EulerDiscreteScheduler", {**CONTINUOUS, "beta_schedule": "odd"}, "damaged"),
        ("EulerDiscreteScheduler", {**CONTINUOUS, "trained_betas": []}, "damaged"),
        ("ScoreSdeVeScheduler", {"sigma_max": 10**400}, "damaged"),
        ("KarrasVeScheduler", {"sigma_min": [1]}, "damaged"),
    ],
)
def test_a_damaged_config_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        formulation(name, **fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


SPACINGS: list[dict[str, Any]] = [{}, {"power": 3.0}, {"power": math.inf}, {"spacing": "angle"}]


@pytest.mark.parametrize("fields", SPACINGS, ids=str)
@pytest.mark.parametrize("sigma_data", [0.5, 3.0])
def test_the_step_count_alone_gives_our_grid(fields: dict[str, Any], sigma_data: float) -> None:
    """But of times that are even in the angle, from three steps on."""
    schedule = Karras(sigma_data=sigma_data, **fields)
    for steps in (1, 2) if "spacing" in fields else (1, 2, 3, 4, 5, 8, 16, 50, 256):
        scheduler: Any = write(Denoiser(stock_network(), schedule, "edm"), steps)
        again: Any = type(scheduler).from_config(scheduler.config)  # as a folder keeps it
        again.set_timesteps(steps)
        exact = schedule.level(time_grid(steps)[:-1])
        torch.testing.assert_close(again.sigmas[:-1].double(), exact, rtol=1e-6, atol=0)
        assert again.sigmas[-1] == 0
        torch.testing.assert_close(again.timesteps.double(), exact.log() / 4, rtol=0, atol=1e-6)


@pytest.mark.parametrize("power", [7.0, math.inf])
def test_a_model_of_any_step_count_has_edms_own_grid(power: float) -> None:
    for spacing in ("power", "angle"):
        scheduler: Any = write(Denoiser(stock_network(), Karras(power=power, spacing=spacing), "edm"), None)
        scheduler.set_timesteps(18)
        exact = Karras(power=power).level(torch.linspace(1, 0, 18).double())
        torch.testing.assert_close(scheduler.sigmas[:-1].double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [3, 4, 16])
def test_times_even_in_the_angle_are_visited_as_is_said(tmp_path: Path, steps: int) -> None:
    teacher = Denoiser(stock_network(), Karras(0.01, SIGMA_MAX, sigma_data=0.7, spacing="angle"), "edm")
    with pytest.warns(UserWarning, match=rf"in {steps} steps its stock scheduler visits other times") as caught:
        progdist.save(teacher, tmp_path / "model", steps=[steps])
    said = re.search(r"(scheduler\.set_timesteps\(.*\)) with (a = .*\))$", str(caught[0].message))
    assert said
    scheduler = EDMEulerScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    names: dict[str, Any] = {"scheduler": scheduler, "torch": torch}
    exec(f"{said[2]}; {said[1]}", names)
    unet, noise = load_unet(tmp_path / "model"), torch.randn(3, 1, 8, 8)
    ours = sample(progdist.load(tmp_path / "model"), noise, steps)
    torch.testing.assert_close(stock_steps(unet, scheduler, noise), ours, rtol=0, atol=1e-5)
    assert "progdist.load" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("fields", SPACINGS[:3], ids=str)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["edm", "v"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_stock_edm_makes_our_images(
    tmp_path: Path, fields: dict[str, Any], sigma_data: float, prediction_type: str, steps: int
) -> None:
    denoiser = Denoiser(stock_network(), Karras(0.01, SIGMA_MAX, sigma_data=sigma_data, **fields), prediction_type)
    progdist.save(denoiser, tmp_path / "model", steps=[steps])
    scheduler = EDMEulerScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    noise = torch.randn(3, 1, 8, 8)
    student = progdist.load(tmp_path / "model")
    assert student.schedule == denoiser.schedule
    theirs = stock_samples(load_unet(tmp_path / "model"), scheduler, noise, steps)
    torch.testing.assert_close(theirs, sample(student, noise, steps), rtol=0, atol=1e-5 * max(1, sigma_data))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_folder_to_a_student_of_two_steps(stock: SaveStock, tmp_path: Path, prediction_type: str) -> None:
    """Opened, distilled, saved, loaded; and the code of its card makes what `sample` makes."""
    stated = EDMEulerScheduler(sigma_max=SIGMA_MAX, sigma_data=0.75, prediction_type=prediction_type)
    folder = stock(stated, classes=3)
    opened = open_teacher(str(folder))
    output = {"epsilon": "edm", "v_prediction": "v"}[prediction_type]
    line = f"Karras schedule from 0.002 to 20 on data of deviation 0.75, output {output}, timestep = log(sigma) / 4"
    assert line in opened.summary
    data = {"x": 0.75 * torch.randn(16, 1, 8, 8), "class_labels": torch.arange(16) % 3}
    student = progdist.distill(progdist.load(folder), data, [4, 2], updates=2, batch=8)
    progdist.save(student, tmp_path / "student")
    loaded, labels, noise = progdist.load(tmp_path / "student"), torch.arange(16) % 3, torch.randn(16, 1, 8, 8)
    ours = sample(loaded, noise, 2, class_labels=labels)
    scheduler = EDMEulerScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    theirs = stock_samples(load_unet(tmp_path / "student"), scheduler, noise, 2, class_labels=labels)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    card = (tmp_path / "student" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    torch.manual_seed(3)
    names: dict[str, Any] = {}
    exec(code.replace('from_pretrained("."', f"from_pretrained({str(tmp_path / 'student')!r}"), names)
    torch.manual_seed(3)
    noise = torch.randn(16, 1, 8, 8)
    torch.testing.assert_close(names["z"], sample(loaded, noise, 2, class_labels=names["labels"]), rtol=0, atol=1e-5)


def test_a_latent_student_is_sampled_by_the_stock_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet2DModel(4, 3, 3, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)  # fmt: skip
    autoencoder = AutoencoderKL(latent_channels=3, **AUTOENCODER)  # whose decoding, unlike a codebook's, is continuous
    scheduler = EDMEulerScheduler(sigma_max=SIGMA_MAX, prediction_type="v_prediction")
    LDMPipeline(autoencoder, network, scheduler).save_pretrained(tmp_path / "teacher")
    progdist.save(progdist.load(tmp_path / "teacher"), tmp_path / "student", steps=[4])
    pipeline = LDMPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    theirs, noise = (torch.Generator().manual_seed(3) for _ in range(2))
    made: Any = pipeline(batch_size=2, generator=theirs, num_inference_steps=4, output_type="np").images
    ours = sample(progdist.load(tmp_path / "student"), torch.randn(2, 3, 4, 4, generator=noise), 4)
    expected = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).detach()
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=0, atol=1e-4)


def test_a_text_pipeline_samples_its_student(tmp_path: Path) -> None:
    """SDXL's with an EDM scheduler, as CosXL and Playground v2.5 are: prompts, sizes and a guidance input pass."""
    folder = write_sdxl(tmp_path / "teacher")
    EDMEulerScheduler(sigma_max=SIGMA_MAX, sigma_schedule="exponential").save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", "EDMEulerScheduler"))
    save(text_student(folder), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", "StableDiffusionXLPipeline")
    assert model.denoiser.schedule == Karras(0.002, SIGMA_MAX, math.inf)
    noise, conditions = sampling_noise(model, len(PROMPTS), 0), model.conditions(7.0, PROMPTS)
    condition: dict[str, Any] = {**conditions({"labels": torch.arange(len(PROMPTS))})}
    # the pipeline multiplies the latents that it is given by the scheduler's init_noise_sigma
    options: dict[str, Any] = {"num_inference_steps": 4, "latents": noise, "output_type": "latent"}
    theirs = pipeline(PROMPTS, guidance_scale=7.0, **options).images
    torch.testing.assert_close(sample(model.denoiser, noise, 4, **condition), theirs, rtol=0, atol=1e-4)


def test_a_student_without_a_stock_scheduler_is_sampled_by_progdist(stock: SaveStock, tmp_path: Path) -> None:
    folder = stock(EDMEulerScheduler())
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        file = folder / name
        told = json.loads(file.read_text().replace("EDMEulerScheduler", "CosineDPMSolverMultistepScheduler"))
        file.write_text(json.dumps({**told, "prediction_type": "v_prediction"} if "scheduler" in name else told))
    opened = open_teacher(str(folder))
    assert "timestep = 2 atan(sigma) / pi" in opened.summary[-1]
    progdist.save(opened.model.denoiser, tmp_path / "student", steps=[2])
    assert not (tmp_path / "student" / "scheduler").exists()
    assert "progdist.load" in (tmp_path / "student" / "README.md").read_text()
    assert progdist.load(tmp_path / "student").schedule == opened.model.denoiser.schedule


@pytest.mark.slow
def test_the_commands_take_an_edm(stock: SaveStock, tmp_path: Path) -> None:
    """Any number of steps will do: the network is asked at levels of noise and not at entries of a table."""
    folder = stock(EDMEulerScheduler(sigma_data=0.75))
    said = succeeds("doctor", folder, "--data", "digits").output
    assert "Karras schedule from 0.002 to 80 on data of deviation 0.75" in said
    options = ("--updates", 2, "--batch", 8, "--start", 8, *SHORT_EVALUATION, *UNTRAINED)
    succeeds("distill", folder, "--data", "digits", "--steps", 3, "--out", tmp_path / "out", *options)
    assert progdist.load(tmp_path / "out" / "student-0003").history["lineage"] == (6,)
