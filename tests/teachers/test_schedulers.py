"""Configs of stock schedulers: what is read is what stock diffusers makes of them, all else is refused or said."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from progdist import RectifiedFlow, UserError, sample
from progdist.teachers import SCHEDULERS
from progdist.teachers.open import open_teacher
from progdist.teachers.schedulers import SOLVERS, TABLE, Formulation, class_defaults, read_formulation
from support.stock import SaveStock, stock_network, stock_samples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of stock code

STOCK = [name for name in TABLE.classes if name != "DPMSolverSDEScheduler"]  # which needs torchsde


def formulation(name: str, **fields: Any) -> Formulation:  # noqa: ANN401
    return read_formulation(SCHEDULERS, Path("folder"), {"_class_name": name, **fields})


def scheduler_of(name: str, **fields: Any) -> Any:  # noqa: ANN401
    return getattr(diffusers, name)(**fields)


FIELDS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
]


@pytest.mark.parametrize("name", STOCK)
def test_the_table_is_the_stock_schedulers(name: str) -> None:
    """What a config does not say is the default of its own class: betas to 0.012 for Heun, 0.02 for DDPM."""
    few = {"num_train_timesteps": 30} if name.startswith("KDPM2") else {}  # whose steps take seconds to count
    for fields in [few | each for each in FIELDS[: 3 if few else None]]:
        if fields.keys() <= class_defaults(name).keys():
            ours: Any = formulation(name, **fields).schedule
            theirs = scheduler_of(name, **fields).alphas_cumprod.float()
            torch.testing.assert_close(torch.tensor(ours.alphas_cumprod), theirs, rtol=0, atol=1e-7)


def test_heuns_exponential_table() -> None:
    theirs = scheduler_of("HeunDiscreteScheduler", beta_schedule="exp").alphas_cumprod
    ours: Any = formulation("HeunDiscreteScheduler", beta_schedule="exp").schedule
    torch.testing.assert_close(torch.tensor(ours.alphas_cumprod), theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler"])
def test_a_teacher_of_a_table_is_sampled_as_stock_ddim_samples_it(stock: SaveStock, name: str) -> None:
    scheduler = scheduler_of(name)
    teacher = open_teacher(str(stock(scheduler)))
    ddim = DDIMScheduler(
        trained_betas=scheduler.betas.tolist(), timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = stock_samples(stock_network(), ddim, noise, 10)
    ours = sample(teacher.model.denoiser, noise, 10)
    torch.testing.assert_close(ours / theirs.std(), theirs / theirs.std(), rtol=0, atol=2e-4)


def test_heuns_flow_is_a_rectified_flow() -> None:
    assert formulation("FlowMatchHeunDiscreteScheduler", shift=3.0).schedule == RectifiedFlow(3.0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_sigmas_are_a_rectified_flow(name: str, shift: float) -> None:
    """The denoised data of a stock solver are ours, at every noise level that it visits."""
    fields = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    found, solver = formulation(name, **fields), scheduler_of(name, **fields)
    assert found.schedule == RectifiedFlow(shift)
    assert (found.parameterization.name, found.offset) == ("velocity", 0)
    solver.set_timesteps(5)
    z, output = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 8, 8).double()
    for place, sigma in enumerate(solver.sigmas[:-1].double()):
        solver._step_index = place
        t = sigma / (shift - (shift - 1) * sigma)
        alpha, sigma_t = found.schedule.scales(t)
        ours = found.parameterization.denoise(output, z, alpha, sigma_t)
        theirs = solver.convert_model_output(output, sample=z)
        if name == "DEISMultistepScheduler":  # whose convert_model_output gives the noise
            ours = (z - alpha * ours) / sigma_t
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        stock_timestep = float(solver.timesteps[place])  # a whole number, cut off
        assert stock_timestep <= 1000 * float(sigma_t) < stock_timestep + 1.01


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True},
            "prediction_type is .*expected flow",
        ),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": "yes"}, "use_flow_sigmas is 'yes', expected true or false"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow_prediction with use_flow_sigmas"),
        (
            "UniPCMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True},
            "shifts its times by the size",
        ),
        (
            "DDIMScheduler",
            {"trained_betas": [0.1, 0.2]},
            "2 trained_betas, expected as many as its num_train_timesteps, 1000",
        ),
        ("DDIMScheduler", {"trained_betas": []}, "0 trained_betas"),
        ("DDIMScheduler", {"trained_betas": "0.1"}, "damaged"),
        ("DDIMScheduler", {"trained_betas": [[0.1]], "num_train_timesteps": 1}, "damaged"),
        ("DDPMScheduler", {"clip_sample": "no"}, "clip_sample is 'no', expected true or false"),
        ("DDPMScheduler", {"clip_sample_range": True}, "clip_sample_range is 'True', expected a positive number"),
        ("DDPMScheduler", {"sample_max_value": 10**400}, "sample_max_value is '1000"),
        ("DDPMScheduler", {"beta_end": 10**400}, "damaged"),
        ("DDPMScheduler", {"beta_end": float("nan")}, "damaged"),
        ("DDPMScheduler", {"prediction_type": ["epsilon"]}, "prediction_type"),
        ("DDPMScheduler", {"predict_epsilon": False}, '"prediction_type": "sample"'),
        ("LCMScheduler", {}, "already distilled to a few steps: give the teacher"),
        ("TCDScheduler", {}, "already distilled to a few steps"),
        ("CMStochasticIterativeScheduler", {}, "already distilled to a few steps"),
        ("IPNDMScheduler", {}, "expected one of DDPMScheduler"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        formulation(name, **fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_fields_that_nothing_knows_are_said(stock: SaveStock) -> None:
    """And those that the class does not take, which stock diffusers passes over, too; others are of its own steps."""
    assert formulation("DDPMScheduler", tensor_format="pt", beta_star=1).notes == (
        "DDPMScheduler has tensor_format, beta_star, which is ignored",
    )
    assert formulation("PNDMScheduler", set_alpha_to_one=False, skip_prk_steps=True, clip_sample=False).notes == ()
    mixed = formulation("HeunDiscreteScheduler", rescale_betas_zero_snr=True, clip_sample_range=2.0)
    assert mixed.notes == ("HeunDiscreteScheduler does not take rescale_betas_zero_snr, which is ignored",)
    folder = stock(DDPMScheduler())
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tensor_format": "pt"}))
    assert open_teacher(str(folder)).summary[-1] == "DDPMScheduler has tensor_format, which is ignored"


def test_every_field_of_every_scheduler_is_known() -> None:
    """Whatever a stock class writes is read, or of its own steps: a field that diffusers adds is noticed here."""
    for kind in SCHEDULERS:
        for name in set(kind.classes) - {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}:
            fields = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if kind is not TABLE else {}
            few = {} if name == "KarrasVeScheduler" else {"num_train_timesteps": 30}
            config = dict(scheduler_of(name, **few).config) | (fields if name in SOLVERS else {})
            assert formulation(name, **{field: value for field, value in config.items() if field[0] != "_"}).notes == ()


def test_limits_are_those_that_the_class_keeps() -> None:
    """DDPM's clip_sample in a config of another class, as `from_config` leaves it there, does nothing in stock code."""
    euler: Any = EulerDiscreteScheduler.from_config(DDPMScheduler(clip_sample=True).config)
    config = dict(euler.config)
    found = formulation(**{"name": "EulerDiscreteScheduler", **{k: v for k, v in config.items() if k[0] != "_"}})
    assert found.limits == ""
    assert found.notes == ("EulerDiscreteScheduler does not take clip_sample, which is ignored",)
    assert formulation("EulerDiscreteScheduler", thresholding=True).limits == ""
    assert formulation("UniPCMultistepScheduler", thresholding=True).limits.startswith("thresholds")
    assert formulation("HeunDiscreteScheduler", clip_sample=True).limits == "clips denoised images to [-1, 1]"
