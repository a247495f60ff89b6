"""What the network is given, and what is refused."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import math
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from progdist import (
    PARAMETERIZATIONS,
    Cosine,
    Denoiser,
    Discrete,
    Karras,
    RectifiedFlow,
    Schedule,
    UserError,
    VarianceExploding,
    sample,
)
from progdist.diffusion.denoiser import check_denoiser
from progdist.diffusion.parameterization import V
from support.toys import times

EXACT = Cosine(math.inf, -math.inf)


def test_eps_is_refused_where_noise_tells_nothing() -> None:
    for schedule in (EXACT, RectifiedFlow()):
        with pytest.raises(UserError, match="use v or x"):
            Denoiser(torch.nn.Identity(), schedule, PARAMETERIZATIONS["eps"])


def test_the_network_sees_its_timestep_and_condition() -> None:
    class Spy(torch.nn.Module):
        def forward(self, z: torch.Tensor, timestep: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
            self.seen = timestep, mark
            return z

    spy, mark = Spy(), torch.ones(2)
    for schedule, expected in ((Cosine(), [511, 1023]), (RectifiedFlow(), [512, 1024])):
        Denoiser(spy, schedule, PARAMETERIZATIONS["x"])(torch.zeros(2, 1, 1, 1), times(0.5, 1), mark=mark)
        assert spy.seen[0].tolist() == expected
        assert spy.seen[1] is mark
    Denoiser(spy, Cosine(), PARAMETERIZATIONS["x"], num_train_timesteps=1000)(
        torch.zeros(2, 1, 1, 1), times(1)[0], mark=mark
    )
    assert spy.seen[0].tolist() == [999, 999]


class Identity(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        self.seen = timestep
        return self.scale * z


def test_timesteps_are_those_of_the_table() -> None:
    """Entry i of a table of T is t = (i + 1) / T; T is its length, unless another is given."""
    for count in (100, 1000):
        denoiser = Denoiser(Identity(), Discrete.linear(num_train_timesteps=count), "v")
        assert denoiser.num_train_timesteps == count
        assert denoiser.timestep(times(1 / count, 0.5, 1)).tolist() == [0, count / 2 - 1, count - 1]
    respaced = Denoiser(Identity(), Discrete((0.9, 0.5, 0.1)), "v", num_train_timesteps=999)
    assert respaced.timestep(times(1 / 3, 1)).tolist() == [332, 998]
    assert Denoiser(Identity(), Cosine(), "v").num_train_timesteps == 1024


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Discrete.linear()])
def test_a_network_of_times_from_0_to_1_is_given_t(schedule: Schedule) -> None:
    denoiser = Denoiser(Identity(), schedule, "v" if schedule != RectifiedFlow() else "velocity", num_train_timesteps=1)
    assert denoiser.timestep(times(0.25, 1)).tolist() == [0.25, 1]
    assert Denoiser(Identity(), schedule, "x", num_train_timesteps=1, offset=1).timestep(times(1)).tolist() == [0]


def test_a_flow_from_noise_to_data_is_called_with_its_own_time() -> None:
    """z = (1 - s) noise + s data with velocity data - noise: to one point one step is exact."""
    point = torch.tensor([[0.3, -0.7]])

    class Flow(torch.nn.Module):
        def forward(self, s: Tensor, x: Tensor) -> Tensor:
            return (point - x) / (1 - s[:, None])

    denoiser = Denoiser(
        Flow(), RectifiedFlow(), "velocity", num_train_timesteps=1, call=lambda net, z, t: -net(1 - t, z)
    )
    for steps in (1, 5):
        made = sample(denoiser, torch.randn(4, 2), steps)
        torch.testing.assert_close(made, point.expand(4, 2))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": None}, "network is a NoneType, expected a torch.nn.Module"),
        ({"network": lambda z, t: z}, "network is a function"),
        ({"schedule": Cosine}, r"schedule is the class Cosine: pass an instance, Cosine\(\)"),
        ({"schedule": "cosine"}, "schedule is a str, expected a progdist.Schedule"),
        (
            {"schedule": DDPMScheduler()},
            r"schedule is a DDPMScheduler, expected a progdist.Schedule: pass Discrete\(scheduler.alphas_cumprod\)",
        ),
        ({"prediction_type": None}, "prediction_type is None, expected a name"),
        ({"prediction_type": V}, r"prediction_type is .*V'>, expected an instance: pass V\(\)"),
        ({"prediction_type": "noise"}, "'noise' is unknown"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps is '1000', expected a number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0, expected a number from 1"),
        ({"num_train_timesteps": True}, "num_train_timesteps is True"),
        ({"offset": "1"}, "offset is '1', expected a number"),
        ({"offset": math.nan}, "offset is nan"),
        ({"call": 3}, "call is a int, expected a function"),
    ],
)
def test_mistakes_are_named(parts: dict[str, Any], message: str) -> None:
    made: dict[str, Any] = {"network": Identity(), "schedule": Cosine(), "prediction_type": "v"}
    with pytest.raises(UserError, match=message):
        Denoiser(**{**made, **parts})
    if "network" not in parts:
        with pytest.raises(UserError, match=message):
            Denoiser(**made).with_parts(**parts)


class Scaled(Denoiser):
    """Data in units of 5, with something of its own."""

    def __init__(self, network: torch.nn.Module, unit: float) -> None:
        super().__init__(network, Cosine(), "x")
        self.unit, self.extra = unit, torch.nn.Linear(2, 2)

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.unit * super().forward(z / self.unit, t, **condition)


def test_a_subclass_stays_what_it_is() -> None:
    first, network, z, t = Scaled(Identity(), 5.0), Identity(), torch.randn(3, 2), torch.tensor(0.5)
    with torch.no_grad():
        network.scale.fill_(2.0)
    other = first.with_network(network)
    assert isinstance(other, Scaled)
    torch.testing.assert_close(other(z, t), 2 * z)
    torch.testing.assert_close(first(z, t), z)  # and is not changed by it
    assert other.extra is first.extra
    form = first.with_parts(prediction_type="v", schedule=RectifiedFlow())
    assert (type(form), form.unit, form.parameterization.name) == (Scaled, 5.0, "v")
    assert first.parameterization.name == "x"
    assert dict(other.named_parameters()).keys() == dict(first.named_parameters()).keys()


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (Identity(), "expected a denoiser, got the network Identity: wrap it in progdist.Denoiser"),
        ("student-0004", "got a str: load its folder with progdist.load"),
        (None, "expected a progdist.Denoiser, got a NoneType"),
    ],
)
def test_what_is_no_denoiser_is_named(got: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_denoiser(got)


class Raw(torch.nn.Module):
    """A network of noise labels and classes: F(c_in x, c_noise, class_labels)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1)])
        self.classes = torch.nn.Linear(5, 4)

    def forward(self, scaled: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        assert c_noise.shape == (len(scaled),)
        told = self.classes(class_labels) + torch.cos(c_noise[:, None] * torch.arange(1, 5))
        return self.layers[1]((self.layers[0](scaled) + told[..., None, None]).tanh())


class EDMPrecond(torch.nn.Module):
    """Karras et al. 2022, equation 7 and table 1, as they are written there."""

    def __init__(self, raw: Raw, sigma_data: float) -> None:
        super().__init__()
        self.raw, self.sigma_data = raw, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        s, d = sigma.reshape(-1, 1, 1, 1), self.sigma_data
        c_skip, c_out = d**2 / (s**2 + d**2), s * d / (d**2 + s**2).sqrt()
        c_in, c_noise = 1 / (d**2 + s**2).sqrt(), sigma.log() / 4
        return c_skip * x + c_out * self.raw(c_in * x, c_noise, class_labels)


@pytest.mark.parametrize("spacing", ["power", "angle"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
@torch.no_grad()
def test_both_forms_of_an_edm_are_what_its_preconditioning_says(
    spacing: Literal["power", "angle"], sigma_data: float
) -> None:
    """Its raw network, and its denoiser of data and noise as they are, with a condition that passes through."""
    raw, schedule = Raw(), Karras(0.01, 20.0, sigma_data=sigma_data, spacing=spacing)
    precond, labels = EDMPrecond(raw, sigma_data), torch.eye(5)
    t, z = times(0.0, 0.1, 0.5, 0.9, 1), torch.randn(5, 2, 8, 8)
    alpha, level = schedule.alpha(t).float().reshape(5, 1, 1, 1), schedule.level(t).float()
    expected = precond(z / alpha, level, labels)
    torch.testing.assert_close(Denoiser(raw, schedule, "edm")(z, t, class_labels=labels), expected, rtol=0, atol=1e-5)
    if spacing == "power":
        ours = Denoiser(precond, VarianceExploding(0.01, 20.0), "sample")(z / alpha, t, class_labels=labels)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma_data", [0.5, 3.0])
def test_both_forms_of_an_edm_make_the_same_samples(sigma_data: float) -> None:
    """From the same x at the first level: EDM's steps do not know in which coordinates they are taken."""
    raw, labels, noise = Raw(), torch.eye(5), torch.randn(5, 2, 8, 8)
    one = Denoiser(raw, Karras(0.01, 20.0, sigma_data=sigma_data), "edm")
    other = Denoiser(EDMPrecond(raw, sigma_data), VarianceExploding(0.01, 20.0), "sample")
    ratio = one.schedule.noise_scale() / float(one.schedule.alpha(times(1))) / 20
    assert ratio == pytest.approx((1 + 1 / 400) ** 0.5)  # stock samplers begin with sqrt(1 + sigma_max^2)
    for steps in (1, 4, 16):
        theirs = sample(other, noise * ratio, steps, class_labels=labels)
        torch.testing.assert_close(sample(one, noise, steps, class_labels=labels), theirs, rtol=0, atol=1e-4)


def test_v_of_an_edm_is_its_output_negated() -> None:
    raw, labels, z = Raw(), torch.eye(5), torch.randn(5, 2, 8, 8)
    schedule, t = Karras(sigma_data=3.0), torch.linspace(0.1, 1, 5).double()
    negated = Denoiser(raw, schedule, "v_prediction", call=lambda network, *inputs, **named: -network(*inputs, **named))
    ours = Denoiser(raw, schedule, "edm")(z, t, class_labels=labels)
    torch.testing.assert_close(negated(z, t, class_labels=labels), ours, rtol=0, atol=1e-6)
