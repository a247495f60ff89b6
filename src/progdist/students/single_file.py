"""A whole student as one file in the original layout, for programs that do not read folders (`progdist export`).

    OUT.safetensors                                                         or, in shards:
    OUT-00001-of-00003.safetensors ...  and  OUT.safetensors.index.json     as transformers and diffusers name them

A file of weights cannot hold a scheduler: its header describes how to sample it. SDXL with v-prediction also has the
empty tensors `v_pred`, and `ztsnr` for zero terminal SNR, by which ComfyUI and Forge recognize it.
"""

import errno
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.models.components import PipelineFolder
from progdist.models.model import Model
from progdist.models.prompts import Prompts
from progdist.students.file_header import architecture, sampling_header
from progdist.students.original_layout import check_pipeline, original_layout
from progdist.students.visited_times import VisitedTimes, visited_times

DType = Literal["float32", "bf16", "fp16"]
"""Types of weights in a file."""

DTYPES: Mapping[DType, torch.dtype] = dict(
    zip(get_args(DType), (torch.float32, torch.bfloat16, torch.float16), strict=True)
)

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Written:
    """The exported files."""

    files: Sequence[Path]  # the file, or the shards and their index
    tensors: int
    bytes: int  # size of the tensors
    times: VisitedTimes  # sampling times


def export_single_file(model: Model, out: Path, dtype: DType = "float32", shard_size: str | None = None) -> Written:
    """Write a whole student in the original layout of its pipeline.

    Args:
        model: a student of a `StableDiffusionPipeline` or a `StableDiffusionXLPipeline`.
        out: the file, .safetensors.
        dtype: type of its weights.
        shard_size: the largest size of a shard, e.g. 2GB; None for one file.

    Raises:
        UserError: the student has another pipeline, a guidance input, or weights without an original name; a number
            exceeds the type; or the file's ending or the size is invalid.
        OSError: it cannot be written.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise UserError(f"--single-file is {out}, expected a file that ends in .safetensors")
    size = shard_bytes(shard_size) if shard_size is not None else None
    prompts = model.conditioning
    check_pipeline(prompts.pipeline)
    assert isinstance(prompts, Prompts)  # a text-to-image pipeline
    if out.resolve().is_relative_to(prompts.folder.resolve()):
        raise UserError(f"--single-file is {out}, in the student's own folder: choose another folder")
    times = visited_times(model)
    folder = PipelineFolder(prompts.folder, prompts.index)
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in folder.parts]
    parts: dict[str, nn.Module] = {name: folder.component(name) for name in encoders}
    parts |= {"unet": model.denoiser.network, "vae": folder.component("vae")}
    tensors = original_layout(prompts.pipeline, parts, DTYPES[dtype]) | marks(prompts.pipeline, times)
    return _write(tensors, header(model, times, dtype), out, size, times)


def header(model: Model, times: VisitedTimes, dtype: DType) -> dict[str, str]:
    """The metadata of the file, all strings."""
    return sampling_header(model, times, model.base.name if model.base else "") | {
        "progdist.dtype": dtype,
        "modelspec.architecture": architecture(model),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.usage_hint": f"{len(times.timesteps)} steps of Euler's method at progdist.sigmas, CFG scale 1",
    }


def marks(pipeline: str, times: VisitedTimes) -> dict[str, Tensor]:
    """The empty tensors by which readers of SDXL recognize v-prediction and zero terminal SNR."""
    if pipeline != "StableDiffusionXLPipeline" or times.prediction != "v_prediction":
        return {}
    names = ["v_pred", "ztsnr"] if cast(Any, times.scheduler).alphas_cumprod[-1] < 1e-6 else ["v_pred"]
    return {name: torch.zeros(0) for name in names}


def shard_bytes(text: str) -> int:
    """Parse a size in bytes, e.g. 2GB or 500MB; a UserError if it is invalid."""
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in UNITS or not (number.isascii() and number.isdigit() and int(number) > 0):
        raise UserError(f"--shard-size is {text[:50]!r}, expected a size, e.g. 2GB or 500MB")
    return int(number) * UNITS[unit]


def _write(
    tensors: Mapping[str, Tensor], metadata: dict[str, str], out: Path, size: int | None, times: VisitedTimes
) -> Written:
    """Write one file, or shards and, last, their index; all files or none."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{_escaped(out.stem)}{{suffix}}.safetensors", max_shard_size=size or total + 1
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = {out.with_name(name): out.with_name(f".{name}.{mark}.partial") for name in split.filename_to_tensors}
    try:
        for path, place in partial.items():
            held = {name: tensors[name] for name in split.filename_to_tensors[path.name]}
            safetensors.torch.save_file(held, place, metadata=metadata)
        for path, place in partial.items():
            place.replace(path)
    except safetensors.SafetensorError as error:  # e.g. a full disk
        raise OSError(errno.EIO, " ".join(str(error).split()), str(out)) from error
    finally:
        for place in partial.values():
            place.unlink(missing_ok=True)
    files = list(partial)
    if split.is_sharded:
        index = {"metadata": {**split.metadata, **metadata}, "weight_map": split.tensor_to_filename}
        files.append(out.with_name(f"{out.name}.index.json"))
        atomic_write(files[-1], (json.dumps(index, indent=2) + "\n").encode())
    return Written(files, len(tensors), total, times)


def _escaped(name: str) -> str:
    """Escape a name for `str.format`."""
    return name.replace("{", "{{").replace("}", "}}")
