"""A model on disk: a diffusers pipeline folder, and progdist.json beside it.

    unet/  scheduler/  model_index.json      what stock diffusers loads and samples
    progdist.json                            schedule, parameterization, step counts, lineage, versions

The scheduler in the folder visits exactly our grid wherever the step count divides T: trailing timesteps, betas from
the schedule itself. A stock sampler then makes the images that `progdist sample` makes. A rectified flow with velocity
output has FlowMatchEulerDiscreteScheduler, whose own default grid is another: give it ours, set_timesteps(sigmas=[1,
(N-1)/N, ..., 1/N]). Other pairs, (x, eps) among them, have no stock scheduler; their folder holds the network and
progdist.json alone.
"""

import errno
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import safetensors
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist._errors import UserError
from progdist.card import card
from progdist.checkpoint import read_json, read_tensors, write_json, write_whole
from progdist.denoiser import Denoiser
from progdist.network import image_shape
from progdist.parameterization import PARAMETERIZATIONS
from progdist.schedule import SCHEDULES, RectifiedFlow, Schedule, VariancePreserving

PREDICTION_TYPES: dict[str, Literal["sample", "epsilon", "v_prediction"]] = {
    "x": "sample",
    "eps": "epsilon",
    "v": "v_prediction",
}
"""Our parameterizations as DDIMScheduler names them."""


@dataclass(frozen=True)
class Model:
    """A denoiser with what its folder tells of it.

    Attributes:
        denoiser: ready to sample.
        steps: the step counts it was trained for; empty for a model of any step count.
        lineage: the step counts of its ancestors, teacher first.
        classes: names of the classes, in the order of the labels; empty if unconditional.
        data: the source of its training images.
        training: numbers of its training, for the record.
    """

    denoiser: Denoiser
    steps: Sequence[int] = ()
    lineage: Sequence[int] = ()
    classes: Sequence[str] = ()
    data: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)


def stock_scheduler(denoiser: Denoiser) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler | None:
    """The diffusers scheduler that samples this denoiser's network on our grid; None where there is none."""
    schedule, kind, count = denoiser.schedule, _name(denoiser), denoiser.timesteps
    if isinstance(schedule, VariancePreserving) and kind in PREDICTION_TYPES and denoiser.offset == 1:
        t = torch.arange(count + 1, dtype=torch.float64) / count
        alpha_bar = schedule.alpha(t) ** 2
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1].clone().index_fill_(0, torch.tensor(0), 1.0)
        return DDIMScheduler(
            num_train_timesteps=count,
            trained_betas=betas.tolist(),
            timestep_spacing="trailing",
            prediction_type=PREDICTION_TYPES[kind],
            clip_sample=False,
        )
    if isinstance(schedule, RectifiedFlow) and kind == "velocity" and denoiser.offset == 0:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=count)
    return None


def save(model: Model, folder: Path) -> None:
    """Write a model folder; it appears whole or not at all.

    Raises:
        UserError: the network is no UNet2DModel, or the folder exists.
        OSError: it cannot be written.
    """
    network = model.denoiser.network
    if not isinstance(network, UNet2DModel):
        raise UserError(f"only a UNet2DModel has a model folder, got {type(network).__name__}: save its state_dict")
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(model, network, partial)
        partial.replace(folder)
    except safetensors.SafetensorError as error:  # how its writer reports a full disk
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, " ".join(str(error).split()), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: Model, network: UNet2DModel, place: Path) -> None:
    scheduler = stock_scheduler(model.denoiser)
    if isinstance(scheduler, DDIMScheduler):
        DDIMPipeline(network, scheduler).save_pretrained(place)
    else:
        network.save_pretrained(place / "unet")
        if scheduler:
            scheduler.save_pretrained(place / "scheduler")
    write_json(place / "progdist.json", _description(model))
    write_card(model, place, ())


def write_card(model: Model, place: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the folder's README.md, with the model's evaluations."""
    scheduler, shape = stock_scheduler(model.denoiser), image_shape(model.denoiser.network)
    assert shape is not None  # of every UNet2DModel
    text = card(_description(model), type(scheduler).__name__ if scheduler else None, shape, records)
    write_whole(place / "README.md", text.encode())


def load(folder: Path) -> Model:
    """Read a model folder, with the network in evaluation mode on the CPU.

    Raises:
        UserError: it is missing, no model folder, or damaged.
    """
    if not (folder / "progdist.json").is_file():
        raise UserError(f"{folder} is no model folder (it has no progdist.json): give a folder that progdist wrote")
    told = read_json(folder / "progdist.json")
    config = read_json(folder / "unet" / "config.json")
    weights = read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    try:
        network = cast(UNet2DModel, UNet2DModel.from_config(config))
        network.load_state_dict(weights)
        denoiser = Denoiser(
            network.eval(),
            _schedule(told["schedule"]),
            PARAMETERIZATIONS[told["parameterization"]],
            timesteps=int(told["timesteps"]),
            offset=float(told["timestep_offset"]),
        )
        counts = {name: tuple(int(count) for count in told[name]) for name in ("steps", "lineage")}
        classes = tuple(str(name) for name in told["classes"])
        return Model(denoiser, **counts, classes=classes, data=told["data"], training=told["training"])
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{folder} is damaged ({reason}): restore it, or make it again") from error


def _name(denoiser: Denoiser) -> str:
    """The parameterization's name."""
    return next(name for name, kind in PARAMETERIZATIONS.items() if type(kind) is type(denoiser.parameterization))


def _schedule(told: Mapping[str, Any]) -> Schedule:
    """A schedule from its description."""
    numbers: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return SCHEDULES[numbers.pop("kind")](**numbers)


def _description(model: Model) -> dict[str, Any]:
    """What progdist.json says."""
    schedule: Any = model.denoiser.schedule
    kind = next(name for name, cls in SCHEDULES.items() if type(schedule) is cls)
    return {
        "schedule": {"kind": kind, **asdict(schedule)},
        "parameterization": _name(model.denoiser),
        "timesteps": model.denoiser.timesteps,
        "timestep_offset": model.denoiser.offset,
        "steps": list(model.steps),
        "lineage": list(model.lineage),
        "classes": list(model.classes),
        "data": model.data,
        "training": dict(model.training),
        "versions": {name: version(name) for name in ("progdist", "torch", "diffusers")},
    }
