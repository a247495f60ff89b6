r"""Check a teacher against its folder: try every parameterization on data; its own must denoise best.

At three noise levels (log-SNR 2, 0 and -2) each parameterization's error mean |x - xh|^2 is measured: a wrong
prediction type shows as an error several times the best one's.

The timestep's convention shows in the network's training loss, as a function of a shift s of its timestep,

    L(s) = mean over the entries k of the table of |F(z_k, k + s) - output_k|^2

A shift rotates each sine and cosine of the time embedding, which the layer after it could have learned: once training
has converged, L is smallest at s = 0 whatever the network's faults, and at s = 1 if its folder counts one too few. The
lowest entries are the most sensitive, since there an entry more or less changes the noise most. If L has no minimum
nearby, the network never learned to distinguish its timesteps, or the data are not those it was trained on: no
conclusion is drawn.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example, scaled
from progdist._utils.errors import UserError
from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.data.examples import ExampleData
from progdist.data.images import Images
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from progdist.diffusion.schedule import Discrete, Karras, RectifiedFlow, Schedule
from progdist.models.model import Model

LEVELS = (2.0, 0.0, -2.0)  # log-SNRs at which prediction types are compared
BANDS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128))
"""First and last entries of the bands of the table in which timesteps are compared; one entry per example in each."""

SHIFTS = (-2, -1, 0, 1, 2)  # added to the timestep
IMAGES = 512  # images on which a teacher is tried
BATCH = 64  # examples per call of the network
ERROR_RATIO = 0.7  # a parameterization is refused if another's error is less than this fraction of its own
STANDARD_ERRORS = 4.0  # standard errors by which another timestep must be better


FOLDER = "fix prediction_type in scheduler/scheduler_config.json", "--set teacher.offset={:g}"
CALL = "give prediction_type={!r}", "Denoiser(..., offset={:g})"
"""What to do about a teacher from a folder, and about one from Python."""


@dataclass(frozen=True)
class TeacherCheck:
    """The results of a check."""

    errors: dict[str, float]  # parameterization -> mean squared error of the denoised data over the three noise levels
    # shift of the timestep -> mean squared error of the output over the lowest noise levels; empty for a network that
    # counts no timesteps
    shifts: dict[int, float]
    problem: str | None  # what is wrong with the folder's description, or None


def time_of(schedule: Schedule, log_snr: float) -> Tensor:
    """The t in (0, 1) at which the schedule has a log-SNR, by bisection; () in float64."""
    low, high = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if schedule.log_snr(middle) > log_snr else (low, middle)
    return low


def check_data(model: Model, images: Images) -> None:
    """Refuse data that do not suit a teacher: without the conditions it takes, or with another shape."""
    model.conditioning.check_data(images)
    if model.image != images.shape:
        raise UserError(
            f"the teacher makes images of {model.image}, but {images.name} has {images.shape} (channels, height, "
            "width): set data.size and data.channels"
        )


def check_on_images(model: Model, images: Images, seed: int, remedies: tuple[str, str] = FOLDER) -> TeacherCheck:
    """Try a model on up to IMAGES images of the data, through its autoencoder if any; raises as `check_data` does.

    `remedies` say what to do about another prediction type and another offset.
    """
    check_data(model, images)
    device = next(model.denoiser.parameters()).device
    x, labels = images.sample(IMAGES, seed)
    x = model.autoencoder.encode(x) if model.autoencoder else x
    eps = torch.randn(x.shape, generator=generator(seed, EVALUATION_NOISE, 2))
    if prompts := model.conditioning.prompts_of(images, labels):
        labels = torch.arange(len(labels))
    conditions = model.conditions(prompts=prompts)
    told = conditions({"labels": labels.to(device)})
    return _judged(model.denoiser, *_measured(model.denoiser, x.to(device), eps.to(device), told), remedies)


def check_on_examples(denoiser: Denoiser, examples: ExampleData, seed: int) -> TeacherCheck:
    """Try your own network on up to IMAGES examples."""
    device = next((each.device for each in denoiser.parameters()), None)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    batch = {name: rows.to(device) for name, rows in examples.rows(order.tolist()).items()}
    eps = torch.randn(batch["x"].shape, generator=generator(seed, EVALUATION_NOISE, 2)).to(device)
    return _judged(denoiser, *_measured(denoiser, batch.pop("x"), eps, batch), CALL)


def check_teacher(denoiser: Denoiser, x: Tensor, eps: Tensor, **condition: Tensor) -> TeacherCheck:
    """Try every parameterization, and shifted timesteps, on a denoiser's network, on data x and noise eps (B, ...)."""
    return _judged(denoiser, *_measured(denoiser, x, eps, condition), FOLDER)


@torch.no_grad()
def _measured(
    denoiser: Denoiser, x: Tensor, eps: Tensor, condition: dict[str, Tensor]
) -> tuple[dict[str, float], dict[int, Tensor]]:
    """The error of each parameterization, and L of each example at each shift."""
    if isinstance(denoiser.schedule, RectifiedFlow):  # the network receives sigma: one network for every shift
        denoiser = denoiser.with_parts(schedule=RectifiedFlow())
    x = scaled(x, 1 / denoiser.schedule.data_scale)  # scaled for the network
    total = {each.name: 0.0 for each in _comparable(denoiser)}
    for level in LEVELS:
        t = _entry(denoiser, time_of(denoiser.schedule, level))
        alpha, sigma = denoiser.schedule.unit_scales(t)
        z = _latents(x, eps, alpha, sigma)
        output = _output(denoiser, z, denoiser.timestep(t).to(z.device, torch.float32).expand(len(z)), condition)
        for parameterization in _comparable(denoiser):
            error = (parameterization.denoise(output, z, alpha, sigma) - x).square().mean() / float(sigma) ** 2
            total[parameterization.name] += float(error) / len(LEVELS)
    return total, _shifted_errors(denoiser, x, eps, condition)


def _judged(
    denoiser: Denoiser, total: dict[str, float], shifted: dict[int, Tensor], remedies: tuple[str, str]
) -> TeacherCheck:
    """Judge the measurements, with the remedies for a parameterization and for an offset."""
    means = {shift: float(values.mean()) for shift, values in shifted.items()}
    problem = (
        _not_finite((*total.values(), *means.values()))
        or _wrong_parameterization(total, denoiser.parameterization.name, remedies[0])
        or _wrong_timestep(shifted, denoiser.offset, remedies[1])
    )
    return TeacherCheck(total, means, problem)


def _entry(denoiser: Denoiser, t: Tensor) -> Tensor:
    """The nearest time in a table of noise levels, the only ones a network may know; t for any other schedule."""
    count = denoiser.num_train_timesteps
    return (t * count).round().clamp(min=1) / count if isinstance(denoiser.schedule, Discrete) else t


def _output(denoiser: Denoiser, z: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """The network's output for z (B, ...) at timesteps (B,), BATCH examples at a time."""
    outputs = []
    for start in range(0, len(z), BATCH):
        part = slice(start, start + BATCH)
        rows = {name: value[part] for name, value in condition.items()}
        outputs.append(denoiser.output(z[part], timestep[part], **rows))
    return torch.cat(outputs)


def _latents(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Alpha x + sigma eps, of scales (B,) or ()."""
    return per_example(alpha, x) * x + per_example(sigma, x) * eps


def _comparable(denoiser: Denoiser) -> list[Parameterization]:
    """Possible meanings of the output: the folder's, and others for its schedule with as many heads."""
    own = denoiser.parameterization
    kind = type(denoiser.schedule)
    names = {RectifiedFlow: ("velocity", "x"), Karras: ("x", "eps", "v", "edm")}.get(kind, ("x", "eps", "v"))
    others = [PARAMETERIZATIONS[name] for name in names if name != own.name]
    return [own, *(other for other in others if other.heads == own.heads)]


def _shifted_errors(denoiser: Denoiser, x: Tensor, eps: Tensor, condition: dict[str, Tensor]) -> dict[int, Tensor]:
    """Shift -> L of each example, (B,), up to the last of the BANDS."""
    draw, count = torch.Generator().manual_seed(0), denoiser.num_train_timesteps
    bands = [(first, last) for first, last in BANDS if last < count - 2]
    if not bands:  # a network of few timesteps, or of none, e.g. one that receives sigma
        return {}
    total = {shift: torch.zeros(len(x), device=x.device) for shift in SHIFTS}
    for first, last in bands:
        entry = torch.randint(first, last + 1, (len(x),), generator=draw).double()
        t = (entry + 1) / count
        alpha, sigma = denoiser.schedule.unit_scales(t)
        z = _latents(x, eps, alpha, sigma)
        true = denoiser.parameterization.output(x, eps, alpha, sigma)
        for shift in SHIFTS:
            timestep = (denoiser.timestep(t) + shift).to(x.device, torch.float32)
            if denoiser.whole_timesteps:
                timestep = timestep.clamp(0, count - 1)
            error = (_output(denoiser, z, timestep, condition) - true).square().flatten(1).mean(1)
            total[shift] += error * (last - first + 1) / sum(end - begin + 1 for begin, end in bands)
    return total


def _not_finite(errors: Iterable[float]) -> str | None:
    wrong = next((error for error in errors if not math.isfinite(error)), None)
    if wrong is None:
        return None
    return (
        f"the network's output on the data is not finite (error {wrong:g}), so no student can learn it: check its "
        "weights and its precision"
    )


def _wrong_parameterization(errors: dict[str, float], own: str, remedy: str = FOLDER[0]) -> str | None:
    best = min(errors, key=lambda name: errors[name])
    if best == own or errors[best] > ERROR_RATIO * errors[own]:
        return None
    return (
        f"the network's prediction type is {own}, but read as {best} it denoises the data better (error "
        f"{errors[best]:.3g}, as {own} {errors[own]:.3g}): {remedy.format(best)}"
    )


def _wrong_timestep(shifted: dict[int, Tensor], offset: float, remedy: str = FOLDER[1]) -> str | None:
    means = {shift: float(values.mean()) for shift, values in shifted.items()}
    for shift in (-1, 1) if means else ():
        gain = shifted[0] - shifted[shift]
        sure = float(gain.mean()) > STANDARD_ERRORS * float(gain.std()) / len(gain) ** 0.5
        if sure and means[2 * shift] > means[shift]:
            return (
                f"with a timestep one {'more' if shift > 0 else 'less'} the network fits the data better (error "
                f"{means[shift]:.4g}, unshifted {means[0]:.4g}): it counts timesteps differently; set it with "
                f"{remedy.format(offset - shift)}"
            )
    return None
