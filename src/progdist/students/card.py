"""The README.md of a model folder, with the metadata header that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from progdist.methods.transitive import PAPERS
from progdist.models.guidance_input import usual_scale
from progdist.models.pipelines import PIPELINES

HEADER = """---
library_name: diffusers
pipeline_tag: {task}
tags:
- diffusion
- progressive-distillation
- few-step
---
"""

PLAIN = """from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{path}")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
"""

CLASSES = """import torch
from diffusers import DDIMScheduler, UNet2DModel

network = UNet2DModel.from_pretrained("{path}", subfolder="unet")
scheduler = DDIMScheduler.from_pretrained("{path}", subfolder="scheduler")
scheduler.set_timesteps({steps})
labels = {labels}
z = torch.randn(16, network.config.in_channels, {height}, {width})
for timestep in scheduler.timesteps:
    with torch.no_grad():
        output = network(z, timestep, class_labels=labels).sample
    z = scheduler.step(output, timestep, z).prev_sample
"""

FLOW = """import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

network = UNet2DModel.from_pretrained("{path}", subfolder="unet")
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("{path}", subfolder="scheduler")
scheduler.set_timesteps({grid})
labels = {labels}
z = torch.randn(16, network.config.in_channels, {height}, {width})
for timestep in scheduler.timesteps:
    with torch.no_grad():
        output = network(z, timestep.expand(16), class_labels=labels).sample
    z = scheduler.step(output, timestep, z).prev_sample
"""

LATENT = """from diffusers import LDMPipeline

pipeline = LDMPipeline.from_pretrained("{path}")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
"""

TRANSFORMER = """import torch
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{path}")
labels = {listed_labels}
images = pipeline(labels, guidance_scale=1.0, num_inference_steps={steps}).images
"""

TEXT = """from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{path}")
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale={scale:g}{call}).images
"""

LORA = """from diffusers import DDIMScheduler, {pipeline}

pipeline = {pipeline}.from_pretrained({base})
pipeline.load_lora_weights("{path}", weight_name="pytorch_lora_weights.safetensors")
grid = {{"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}}
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **grid)
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale={scale:g}).images
"""

OURS = """import torch
import progdist

denoiser = progdist.load("{path}")
noise = torch.randn(16, {channels}, {height}, {width})
images = progdist.sample(denoiser, noise, {steps}{condition})
"""


def _template(stock: str | None, classes: int) -> str:
    """The code that samples a model of some stock pipeline or scheduler."""
    match stock:
        case str() if stock in PIPELINES:
            return TEXT
        case "DDIMScheduler":
            return CLASSES if classes else PLAIN
        case "FlowMatchEulerDiscreteScheduler":
            return FLOW
        case "DiTPipeline":
            return TRANSFORMER
        case "LDMPipeline" if not classes:
            return LATENT
    return OURS


def card(
    description: Mapping[str, Any],
    labels: Sequence[int],
    stock: str | None,
    image: Sequence[int],
    latent_shape: Sequence[int],
    records: Sequence[Mapping[str, Any]],
) -> str:
    """The text.

    Args:
        description: what progdist.json says.
        labels: those that mean a class.
        stock: the class of the folder's stock pipeline or scheduler, if it has one.
        image: (channels, height, width).
        latent_shape: the shape of what the network sees: `image`, or that of its latents.
        records: evaluations of this model.
    """
    counts = list(description["steps"])
    steps, classes = min(counts, default=256), len(labels)
    template = OURS if "class_guidance" in description else _template(stock, classes)
    turn = _in_turn(labels)
    condition = f", class_labels={turn}" if classes else ""
    condition += f", guidance={_scale(scales):g}" if (scales := description.get("class_guidance")) else ""
    numbers = {
        "channels": latent_shape[0],
        "height": latent_shape[1],
        "width": latent_shape[2],
        "labels": turn,
        "listed_labels": f"({turn}).tolist()",
        "condition": condition,
        "grid": f"{steps}" if counts else f"sigmas=[1 - i / {steps} for i in range({steps})]",
        "pipeline": stock,
        "caption": "a photograph of a lighthouse",
        "scale": _scale(description.get("guidance")),
        "call": PIPELINES[stock].call.format(height=image[1], width=image[2]) if stock in PIPELINES else "",
    }
    code = template.format(path=".", steps=steps, **numbers)
    size = f"{image[1]}x{image[2]} with {image[0]} channel{'s' if image[0] > 1 else ''}"
    lines = [
        HEADER.format(task="text-to-image" if "guidance" in description else "unconditional-image-generation"),
        f"# A diffusion model that samples in {_listed(counts)}\n" if counts else "# A diffusion model\n",
        f"Images of {size}, "
        + ("of captions" if "guidance" in description else f"{classes} classes" if classes else "unconditional")
        + f"; trained on {description['data']}.",
        _lineage(description),
        _guidance(description) if "guidance" in description else _class_guidance(description, stock),
        f"\n```python\n{code}```\n",
        _lora(description["lora"], steps, numbers) if "lora" in description else "",
        _measured(records),
    ]
    return "\n".join(line for line in lines if line)


def _in_turn(labels: Sequence[int]) -> str:
    """The code that takes all labels in turn, sixteen in all."""
    if not labels:
        return "None"
    turn = f"torch.arange(16) % {len(labels)}"
    return turn if list(labels) == list(range(len(labels))) else f"torch.tensor({list(labels)})[{turn}]"


def _listed(counts: Sequence[int]) -> str:
    return f"{' or '.join(map(str, counts))} step{'s' if list(counts) != [1] else ''}"


def _lineage(description: Mapping[str, Any]) -> str:
    if not description["lineage"]:
        return ""
    chain = " -> ".join(map(str, (*description["lineage"], *description["steps"])))
    target, counts = description.get("target", "progressive"), description["steps"]
    method, _, paper = PAPERS[target]
    doubled = _listed([2 * count for count in counts])
    also = {
        "stochastic": f" of DDIM, at {doubled} of `progdist sample --method overshoot`,",
        "tract": ", at several of `progdist sample --method consistency`," if 1 in counts else "",
    }.get(target, "")
    return (
        f"Made by [{method}](https://arxiv.org/abs/{paper}), {chain} steps. It is good at {_listed(counts)}{also} and "
        "poor at any other count."
    )


def _scale(guidance: Sequence[float] | float | None) -> float:
    """The guidance scale for the stock pipeline: in the middle of a range that is an input, and 1 otherwise."""
    return sum(guidance) / 2 if isinstance(guidance, list | tuple) else 1.0


def _guidance(description: Mapping[str, Any]) -> str:
    """How it is guided, and what a stock pipeline must be told."""
    taken, negative = description["guidance"], description["negative"]
    away = f', away from "{negative}"' if negative else ""
    if isinstance(taken, list | tuple) and taken[0] == taken[1]:
        return f"Sample it with `guidance_scale={taken[0]:g}`, which is an input; `negative_prompt` has no effect."
    if isinstance(taken, list | tuple):
        return (
            f"`guidance_scale` is an input, from {taken[0]:g} to {taken[1]:g}, distilled in{away}: each step calls the "
            "network once, and `negative_prompt` has no effect."
        )
    known = f"a guidance scale of {taken:g} is distilled in{away}" if taken else "no guidance is distilled in"
    return f"Sample it with `guidance_scale=1`: {known}, and `negative_prompt` has no effect."


def _lora(lora: Mapping[str, Any], steps: int, numbers: Mapping[str, Any]) -> str:
    """How the pipeline that it was made from samples it by its LoRA file."""
    name, revision = lora["base"], ""
    if name.startswith("hub:"):
        name, _, revision = name.removeprefix("hub:").partition("@")
    base = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    code = LORA.format(path=".", base=base, steps=steps, **numbers)
    return (
        f"The same as LoRA weights of rank {lora['rank']} for {name}, which keeps its own weights; Euler's method with "
        f"trailing timesteps takes the same steps:\n\n```python\n{code}```\n"
    )


def _class_guidance(description: Mapping[str, Any], stock: str | None) -> str:
    """Which guidance scales a class-conditional model takes, and what stock diffusers makes of it."""
    if "class_guidance" not in description:
        return ""
    least, most = description["class_guidance"]
    usual = f"{usual_scale((least, most)):g}"
    away = "Stock diffusers loads " + {None: "its network", "DiTPipeline": "`transformer/`"}.get(stock, "`unet/`")
    how = ", with `guidance_scale=1` in DiTPipeline" if stock == "DiTPipeline" else ""
    return (
        f"`guidance` is an input, from {least:g} to {most:g}, by a part `guidance/` beside the network: each step "
        f"calls the network once. {away} without that part, which is this model at a guidance of {usual}{how}; any "
        "other scale needs progdist, as below."
    )


def _measured(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return ""
    rows = ["| steps | features | samples | Fréchet distance | 95 % |", "|---:|---|---:|---:|---|"]
    rows += [
        f"| {record['steps']} | {quality['features']} | {quality['samples']} | {quality['frechet']:.3f} | "
        f"{quality['frechet_low']:.3f} to {quality['frechet_high']:.3f} |"
        for record in records
        for quality in record["quality"]
    ]
    scale = f", at a guidance scale of {records[0]['guidance']:g}" if "guidance" in records[0] else ""
    return f"Measured against its training data{scale}:\n\n" + "\n".join(rows) + "\n"
