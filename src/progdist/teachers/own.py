"""Read one of our model folders, as written by `progdist.students.folder`: as untrusted as any other.

Weights must have the checksums in progdist.json, configs must have plausible sizes, and nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import check_format, check_tensors_finite, checksum, read_json, read_tensors
from progdist._utils.names import Bits
from progdist.diffusion.denoiser import MAX_TIMESTEPS, Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import SCHEDULES, Schedule
from progdist.methods import METHODS
from progdist.methods.guidance import Input, as_guidance
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.guidance_input import load_class_guidance
from progdist.models.model import LoraWeights, Model
from progdist.models.networks import check_inputs, class_count, network_interface
from progdist.models.pipeline_autoencoder import PipelineAutoencoder
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.models.pipeline_record import read_pipeline
from progdist.models.prompts import read_prompts
from progdist.models.safe_loading import load_component, nearest_models, network_class, read_autoencoder
from progdist.models.trial import try_shapes
from progdist.teachers.base import read_base
from progdist.teachers.own_network import is_own, read_denoiser

LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name for a file of LoRA weights


def load(folder: Path, network: nn.Module | None = None, **parts: Any) -> Model:  # noqa: ANN401
    """Read a model folder, with the network in evaluation mode on the CPU.

    The folder of your own network is read into the given `network`, with those `parts` of its denoiser that are your
    own code.

    Raises:
        UserError: it is missing, not a model folder, damaged, or of a later format.
    """
    if not (folder / "progdist.json").is_file():
        raise UserError(f"{folder} is not a model folder (it has no progdist.json): give {nearest_models(folder)}")
    metadata = read_json(folder / "progdist.json")
    check_format(metadata, folder / "progdist.json")
    _verify_checksums(folder, metadata.get("sha256"))
    if "pipeline" in metadata and network is None and not parts:
        return _load_pipeline(folder, metadata)
    if is_own(metadata):
        return _load_own(folder, metadata, network, parts)
    if network is not None or parts:
        what = "network" if network is not None else min(parts)
        raise UserError(f"{what} has no effect: {folder} holds a diffusers network, which needs no {what}=: remove it")
    try:
        part = "transformer" if (folder / "transformer").is_dir() else "unet"
        network = load_component(folder, part, network_class(folder / part))
        if (scales := metadata.get("class_guidance")) is not None:
            network = load_class_guidance(network, Input(*map(float, scales)), folder)
        denoiser = Denoiser(
            network,
            _schedule(metadata["schedule"]),
            PARAMETERIZATIONS[metadata["parameterization"]],
            num_train_timesteps=int(metadata["timesteps"]),
            offset=float(metadata["timestep_offset"]),
            **network_interface(network),
        )
        check_inputs(network, folder / part)
        model = Model(
            denoiser,
            **_history(metadata),
            conditioning=_conditioning(folder, metadata, network),
            autoencoder=read_autoencoder(folder),
            lora=_lora(folder, metadata.get("lora"), part),
        )
        try_shapes(model, folder)
        return model
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    except DAMAGE as error:
        raise _damaged(folder, error) from error


def _load_pipeline(folder: Path, metadata: Mapping[str, Any]) -> Model:
    """Read a model whose pipeline was watched."""
    try:
        pipeline = read_pipeline(metadata["pipeline"], folder)
        denoiser = Denoiser(
            pipeline.folder.component(pipeline.folder.network),
            _schedule(metadata["schedule"]),
            PARAMETERIZATIONS[metadata["parameterization"]],
            num_train_timesteps=int(metadata["timesteps"]),
            offset=float(metadata["timestep_offset"]),
            call=pipeline.call,
        )
        conditioning = PipelinePrompts(
            folder, pipeline.folder.index, as_guidance(metadata["guidance"]), metadata["negative"], watched=pipeline
        )
        autoencoder = PipelineAutoencoder(pipeline)
        lora = _lora(folder, metadata.get("lora"), pipeline.folder.network)
        return Model(denoiser, **_history(metadata), conditioning=conditioning, autoencoder=autoencoder, lora=lora)
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    except DAMAGE as error:
        raise _damaged(folder, error) from error


def last_stage(student: Path) -> tuple[Path, int, int]:
    """For a student in its run's folder: its teacher's folder, its teacher's steps and its own.

    Raises:
        UserError: it is not a student of one step count.
    """
    model = load(student)
    if model.lora:
        raise UserError(f"{student} is a LoRA student, expected a student with all weights: choose another")
    if len(model.steps) != 1 or not model.lineage:
        raise UserError(f"{student} is not a student of one step count: give one that a run has distilled")
    names = [f"student-{model.lineage[-1]:04d}"] if len(model.lineage) > 1 else ["converted", "teacher"]
    found = [student.parent / name for name in names if (student.parent / name / "progdist.json").is_file()]
    return (found or [student.parent / names[-1]])[0], model.lineage[-1], model.steps[0]


DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, IndexError)


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return UserError(f"{folder} is damaged ({reason}): restore it, or make it again")


def _load_own(folder: Path, metadata: Mapping[str, Any], network: nn.Module | None, parts: Mapping[str, Any]) -> Model:
    try:
        schedule = _schedule(metadata["schedule"]) if metadata["schedule"] is not None else None
        return Model(read_denoiser(folder, metadata, schedule, network, parts), **_history(metadata))
    except UserError:
        raise
    except DAMAGE as error:
        raise _damaged(folder, error) from error


def _history(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is known about a model's making, by the names of `Model`."""
    method = str(metadata.get("method", "progressive"))
    if method and method not in METHODS:
        raise UserError(f"method is {method[:50]}, expected one of {', '.join(METHODS)}")
    counts = {name: tuple(_step_count(count) for count in metadata[name]) for name in ("steps", "lineage")}
    return counts | {
        "data": str(metadata["data"]),
        "training": dict(metadata["training"]),
        "method": method,
        "fused": tuple(str(each) for each in metadata.get("fused", ())),
        "base": read_base(metadata.get("base"), Path("progdist.json")),
    }


def _step_count(number: object) -> int:
    """A number of steps that a model can take. Raise a ValueError for anything else."""
    if not isinstance(number, int) or not 1 <= number <= MAX_TIMESTEPS:
        raise ValueError(f"a step count is {str(number)[:50]}, expected 1 to {MAX_TIMESTEPS:,}")
    return number


def _verify_checksums(folder: Path, sums: object) -> None:
    """Refuse weights that differ from those written; an empty `sha256` allows weights changed on purpose."""
    where = folder / "progdist.json"
    if not isinstance(sums, dict):
        raise UserError(f"{where}: sha256 is a {type(sums).__name__}, expected checksums by file name: restore it")
    held = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.safetensors"))}
    for name in sorted(held.keys() ^ sums.keys()) if sums else ():
        what = "is not one of the files that were written" if name in held else "is missing"
        raise UserError(f'{folder / str(name)} {what}: restore the folder (or set "sha256" to {{}} in {where})')
    for name, path in held.items():
        if sums and checksum(path) != sums[name]:
            raise UserError(
                f'{path} is not what was written: restore it (or, if you changed it on purpose, set "sha256" to {{}} '
                f"in {where})"
            )


def _schedule(metadata: Mapping[str, Any]) -> Schedule:
    kinds = SCHEDULES[str(metadata["kind"])]
    return kinds(**{name: _numbers(name, value) for name, value in metadata.items() if name != "kind"})


def _numbers(name: str, value: object) -> Any:  # noqa: ANN401  (a number, or numbers)
    """A number of a schedule, its table, or a word, which the schedule checks. Raise a TypeError for others."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return tuple(_numbers(name, each) for each in value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name[:50]} is {str(value)[:50]!r}, expected a number")
    return float(value)


def _conditioning(folder: Path, metadata: Mapping[str, Any], network: nn.Module) -> Conditioning:
    if prompts := read_prompts(folder, network):
        return replace(prompts, learned=as_guidance(metadata["guidance"]), negative=metadata["negative"])
    names, count = metadata["classes"], class_count(network)
    if not isinstance(names, list) or len(names) != count:
        raise ValueError(f"classes are {str(names)[:50]}, expected the names of the network's {count}")
    shares = tuple(metadata.get("class_counts", ()))
    return Classes(tuple(map(str, names)), metadata.get("null_class"), shares=shares) if names else Conditioning()


def _lora(folder: Path, metadata: Any, part: str) -> LoraWeights | None:  # noqa: ANN401  (whatever JSON can hold)
    if metadata is None:
        return None
    weights = read_tensors(folder / LORA_FILE)
    check_tensors_finite(weights, folder / LORA_FILE)
    if (bits := metadata.get("base_bits")) not in (None, *get_args(Bits)):
        raise ValueError(f"base_bits is {str(bits)[:50]}, expected 8 or 4")
    by_name = {name.removeprefix(f"{part}."): tensor for name, tensor in weights.items()}
    return LoraWeights(str(metadata["base"]), by_name, bits)
