"""Export a LoRA student as one file for another program, with its sampling settings in the header."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, write_json
from progdist.models.model import LoraWeights, Model
from progdist.models.prompts import Prompts
from progdist.students.comfyui import workflow
from progdist.students.file_header import architecture, sampling_header
from progdist.students.lora_formats import Format, converted, naming
from progdist.students.visited_times import VisitedTimes, visited_times
from progdist.teachers.own import LORA_FILE


@dataclass(frozen=True)
class Exported:
    """An exported LoRA file."""

    tensors: int
    layers: int
    times: VisitedTimes


def export_lora(model: Model, form: Format, out: Path, graph: Path | None = None) -> Exported:
    """Write a student's LoRA weights in a format, and a ComfyUI workflow that samples it.

    Args:
        model: a student that was distilled with `--lora`.
        form: the format of the layer names.
        out: the file, .safetensors.
        graph: the workflow, .json, in ComfyUI's API format; None for none.

    Raises:
        UserError: not a LoRA student, a format or workflow that does not support its pipeline, or a wrong file ending.
    """
    if out.suffix.lower() != ".safetensors" or out.is_dir():
        raise UserError(f"--out is {out}, expected a file that ends in .safetensors")
    if graph is not None and (graph.suffix.lower() != ".json" or graph.is_dir()):
        raise UserError(f"--workflow is {graph}, expected a file that ends in .json")
    if not model.lora or not model.lora.weights or not isinstance(model.conditioning, Prompts):
        raise UserError("--lora-format requires a LoRA student: distil one with --lora RANK")
    pipeline = model.conditioning.pipeline
    if out.resolve() == (model.conditioning.folder / LORA_FILE).resolve():
        raise UserError(f"--out is {out}, the student's own file: choose another name")
    naming(pipeline, form)
    times = visited_times(model)
    nodes = workflow(model, times, out.name) if graph is not None else None
    tensors = converted(model.lora.weights, pipeline, form)
    atomic_write(out, safetensors.torch.save(tensors, header(model, model.lora, form, times)))
    if graph is not None:
        write_json(graph, nodes)
    return Exported(len(tensors), len(model.lora.weights) // 2, times)


def header(model: Model, lora: LoraWeights, form: Format, times: VisitedTimes) -> dict[str, str]:
    """The metadata of the file, all strings; `ss_*` are those of kohya's scripts, for other programs."""
    rank = str(lora.rank)
    fields = sampling_header(model, times, lora.base) | {
        "progdist.lora_format": form,
        "progdist.rank": rank,
        "modelspec.architecture": f"{architecture(model)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.usage_hint": (
            f"{len(times.timesteps)} steps of Euler's method at progdist.sigmas, CFG scale 1, weight 1"
        ),
    }
    if form == "kohya":
        fields |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    return fields
