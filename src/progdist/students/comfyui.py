"""A ComfyUI workflow that samples a LoRA student, in API format: {node: {"class_type", "inputs"}}.

    base -> LoraLoaderModelOnly ----------------\
    prompt -> CLIPTextEncode --------------------\
    KSamplerSelect, ManualSigmas, empty latent ----> SamplerCustom -> VAEDecode -> SaveImage

ManualSigmas has exactly the noise levels that the student's own scheduler visits (`progdist.students.visited_times`) in
ComfyUI's terms: sigma of a flow, x = (1 - sigma) x_0 + sigma eps, and sigma / alpha of a table, x = x_0 + sigma eps.
Its `euler` is Euler's method in sigma, as DDIM and diffusers' flow scheduler are. ComfyUI's named schedulers would
visit other levels. The user selects the files of the base in the loaders.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from progdist._utils.errors import UserError
from progdist.models.model import Model
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.students.visited_times import VisitedTimes, plain

PROMPT = "a photograph of a lighthouse"

Nodes = dict[str, dict[str, Any]]
Link = list[Any]  # [node, number of its output]


@dataclass(frozen=True)
class Graph:
    """The differences between the pipelines.

    Args:
        latents: the node of empty latents.
        clips: the loader of text encoders and its `type`; None if the checkpoint contains them.
        files: number of text encoders it loads.
        checkpoint: whether network and autoencoder come in one file.
        text: the node of a prompt and its further inputs.
    """

    latents: str = "EmptySD3LatentImage"
    clips: tuple[str, str] | None = None
    files: int = 1
    checkpoint: bool = False
    text: tuple[str, dict[str, Any]] = ("CLIPTextEncode", {})


GRAPHS = {
    "StableDiffusionPipeline": Graph("EmptyLatentImage", checkpoint=True),
    "StableDiffusionXLPipeline": Graph("EmptyLatentImage", checkpoint=True),
    "StableDiffusion3Pipeline": Graph(clips=("TripleCLIPLoader", ""), files=3, checkpoint=True),
    "FluxPipeline": Graph(clips=("DualCLIPLoader", "flux"), files=2),
    "WanPipeline": Graph("EmptyHunyuanLatentVideo", clips=("CLIPLoader", "wan")),
    "LTXPipeline": Graph("EmptyLTXVLatentVideo", clips=("CLIPLoader", "ltxv"), checkpoint=True),
    "QwenImagePipeline": Graph(clips=("CLIPLoader", "qwen_image")),
    "ZImagePipeline": Graph(clips=("CLIPLoader", "lumina2")),
    "Lumina2Pipeline": Graph(checkpoint=True, text=("CLIPTextEncodeLumina2", {"system_prompt": "superior"})),
    "HunyuanVideoPipeline": Graph("EmptyHunyuanLatentVideo", clips=("DualCLIPLoader", "hunyuan_video"), files=2),
}
"""Graphs by the class of the stock pipeline."""

FRAME_RATE = 25.0  # default of LTX-Video's pipeline


def workflow(model: Model, times: VisitedTimes, lora: str) -> Nodes:
    """The nodes that sample a student from noise.

    Args:
        model: the student.
        times: the times that it visits.
        lora: file name of its LoRA weights in ComfyUI's LoRA folder.

    Raises:
        UserError: ComfyUI's own nodes do not sample its pipeline, or its times start at zero SNR.
    """
    pipeline = str(model.conditioning.pipeline)
    graph = GRAPHS.get(pipeline)
    if graph is None or model.lora is None:
        raise UserError(f"--workflow does not support {pipeline}: expected one of {', '.join(GRAPHS)}")
    if not math.isfinite(times.sigmas[0]):
        raise UserError("--workflow requires a student that starts above zero SNR: no node takes an infinite sigma")
    made: Nodes = {}
    network, clip, vae = _loaders(graph, Path(model.lora.base).name, made)
    made["lora"] = _node("LoraLoaderModelOnly", model=network, lora_name=lora, strength_model=1.0)
    made["prompt"] = _node(graph.text[0], clip=clip, **graph.text[1], **{_prompt_input(graph): PROMPT})
    positive, negative = _conditions(model, pipeline, made)
    made["latents"] = _node(graph.latents, **_size(model, pipeline, graph.latents), batch_size=1)
    made["sampler"] = _node("KSamplerSelect", sampler_name="euler")
    made["sigmas"] = _node("ManualSigmas", sigmas=plain(times.sigmas))
    made["sampled"] = _node(
        "SamplerCustom",
        model=["lora", 0],
        add_noise=True,
        noise_seed=0,
        cfg=1.0,  # without guidance, so that the negative prompt has no effect
        positive=positive,
        negative=negative,
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latents", 0],
    )
    made["decoded"] = _node("VAEDecode", samples=["sampled", 0], vae=vae)
    made["saved"] = _node("SaveImage", images=["decoded", 0], filename_prefix=Path(lora).stem)
    return made


def _node(kind: str, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"class_type": kind, "inputs": inputs}


def _prompt_input(graph: Graph) -> str:
    """The name of the prompt's input."""
    return "text" if graph.text[0] == "CLIPTextEncode" else "user_prompt"


def _loaders(graph: Graph, base: str, made: Nodes) -> Sequence[Link]:
    """Network, text encoders and autoencoder, from loaders that are added to `made`."""
    if graph.checkpoint:
        made["base"] = _node("CheckpointLoaderSimple", ckpt_name=f"{base}.safetensors")
        links: list[Link] = [["base", 0], ["base", 1], ["base", 2]]
    else:
        made["base"] = _node("UNETLoader", unet_name=f"{base}.safetensors", weight_dtype="default")
        made["vae"] = _node("VAELoader", vae_name=f"{base}-vae.safetensors")
        links = [["base", 0], ["clip", 0], ["vae", 0]]
    if graph.clips:
        kind, family = graph.clips
        names = ["clip_name"] if graph.files == 1 else [f"clip_name{number + 1}" for number in range(graph.files)]
        files = {name: f"{base}-text-encoder{name.removeprefix('clip_name')}.safetensors" for name in names}
        made["clip"] = _node(kind, **files, **({"type": family} if family else {}))
        links[1] = ["clip", 0]
    return links


def _conditions(model: Model, pipeline: str, made: Nodes) -> tuple[Link, Link]:
    """The positive and negative conditioning, with a guidance input or a video's frame rate."""
    scale = model.scale(None)
    if scale is not None:
        made["guidance"] = _node("FluxGuidance", conditioning=["prompt", 0], guidance=float(scale))
        return ["guidance", 0], ["prompt", 0]
    if pipeline == "LTXPipeline":
        made["rate"] = _node("LTXVConditioning", positive=["prompt", 0], negative=["prompt", 0], frame_rate=FRAME_RATE)
        return ["rate", 0], ["rate", 1]
    return ["prompt", 0], ["prompt", 0]


def _size(model: Model, pipeline: str, latents: str) -> dict[str, int]:
    """Width, height and, for videos, the number of frames, as in the stock pipeline's call."""
    prompts = model.conditioning
    taken = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    given = dict(prompts.watched.arguments) if isinstance(prompts, PipelinePrompts) else {}
    known = {
        name: given.get(name) or taken[name].default for name in ("width", "height", "num_frames") if name in taken
    }
    if not all(known[name] for name in ("width", "height")):
        known["height"], known["width"] = model.image[-2:]
    size = {name: int(known[name]) for name in ("width", "height")}
    return size | ({"length": int(known["num_frames"])} if latents.endswith("Video") else {})
