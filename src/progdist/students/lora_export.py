"""A LoRA student as one file for another program, with what must be known to sample it in the file's header."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, write_json
from progdist.methods.guidance import Fixed, Input
from progdist.models.model import LoraWeights, Model
from progdist.models.prompts import Prompts
from progdist.students.comfyui import workflow
from progdist.students.lora_formats import Format, converted, naming
from progdist.students.visited_times import VisitedTimes, plain, visited_times
from progdist.teachers.own import LORA_FILE

README_BYTES = 100_000
"""How much of a base's model card is read."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    tensors: int
    layers: int
    times: VisitedTimes


def export_lora(model: Model, form: Format, out: Path, graph: Path | None = None) -> Exported:
    """Write a student's LoRA weights in a format, and a workflow of ComfyUI's that samples it.

    Args:
        model: a student that was distilled with `--lora`.
        form: whose names the layers have.
        out: the file, .safetensors.
        graph: the workflow, .json, in ComfyUI's API format; None for none.

    Raises:
        UserError: it is no LoRA student, the format or the workflow is not written for its pipeline, or a file is not
            called so.
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
    """The metadata of the file, strings all.

    `progdist.*` say how it is sampled, with `progdist.sigmas` as `visited_times` has them; `modelspec.*` are those of
    Stability AI's ModelSpec 1.0.0, `ss_*` those that kohya's scripts write and others read.
    """
    steps, pipeline = str(len(times.timesteps)), str(model.conditioning.pipeline)
    said = {
        "format": "pt",
        "progdist.base_model": lora.base,
        "progdist.pipeline": pipeline,
        "progdist.lora_format": form,
        "progdist.rank": str(lora.rank),
        "progdist.method": model.method,
        "progdist.steps": steps,
        "progdist.guidance": guidance(model),
        "progdist.cfg": "1",
        "progdist.sampler": "euler",
        "progdist.scheduler": type(times.scheduler).__name__,
        "progdist.timesteps": plain(times.timesteps),
        "progdist.sigmas": plain(times.sigmas),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(model)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{Path(lora.base).name} in {steps} steps",
        "modelspec.usage_hint": f"{steps} steps of Euler's method at progdist.sigmas, CFG scale 1, weight 1",
    }
    if times.prediction in ("epsilon", "v_prediction"):
        said["modelspec.prediction_type"] = {"epsilon": "epsilon", "v_prediction": "v"}[times.prediction]
    if form == "kohya":
        rank = str(lora.rank)
        said |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    if found := licence(lora.base):
        said["modelspec.license"] = found
    return said


def guidance(model: Model) -> str:
    """The guidance scale that was distilled in, the range that is an input, or none."""
    match model.guidance:
        case Fixed(scale):
            return f"{scale:g}, distilled in"
        case Input(low, high) if low == high:
            return f"{low:g}, an input of the network"
        case Input(low, high):
            return f"{low:g} to {high:g}, an input of the network"
    return "none"


ARCHITECTURES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
    "Lumina2Pipeline": "lumina-2",
}
"""ModelSpec's names, where they are not those of the pipeline's class."""


def architecture(model: Model) -> str:
    """ModelSpec's name of a model's architecture, as kohya's scripts write it where they know it."""
    pipeline, config = str(model.conditioning.pipeline), cast(Any, model.denoiser.network).config
    if pipeline == "StableDiffusionPipeline":
        if config.get("cross_attention_dim") != 1024:
            return "stable-diffusion-v1"
        return "stable-diffusion-v2-768-v" if model.denoiser.parameterization.name == "v" else "stable-diffusion-v2-512"
    if pipeline == "FluxPipeline":
        return "flux-1-dev" if config.get("guidance_embeds") else "flux-1-schnell"
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", pipeline.removesuffix("Pipeline")).lower()
    return ARCHITECTURES.get(pipeline, words)


def licence(base: str) -> str | None:
    """The licence that the model card of a base's folder names in its first lines; None where it names none."""
    card = Path(base) / "README.md"
    try:
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(README_BYTES)
    except (OSError, ValueError):
        return None
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    named = re.findall(r"(?m)^(license|license_name):[ \t]*[\"']?([^\s\"']{1,100})", head[1] if head else "")
    lines: Mapping[str, str] = dict(named)
    found = lines.get("license")
    return lines.get("license_name", found) if found == "other" else found
