"""The README.md of a model folder, with the metadata header that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusion
- progressive-distillation
- few-step
---
"""

PLAIN = """from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{place}")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
"""

CLASSES = """import torch
from diffusers import DDIMScheduler, UNet2DModel

network = UNet2DModel.from_pretrained("{place}", subfolder="unet")
scheduler = DDIMScheduler.from_pretrained("{place}", subfolder="scheduler")
scheduler.set_timesteps({steps})
labels = torch.arange(16) % {classes}
z = torch.randn(16, network.config.in_channels, {height}, {width})
for timestep in scheduler.timesteps:
    with torch.no_grad():
        output = network(z, timestep, class_labels=labels).sample
    z = scheduler.step(output, timestep, z).prev_sample
"""

FLOW = """import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

network = UNet2DModel.from_pretrained("{place}", subfolder="unet")
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("{place}", subfolder="scheduler")
scheduler.set_timesteps(sigmas=[1 - i / {steps} for i in range({steps})])
labels = {labels}
z = torch.randn(16, network.config.in_channels, {height}, {width})
for timestep in scheduler.timesteps:
    with torch.no_grad():
        output = network(z, timestep.expand(16), class_labels=labels).sample
    z = scheduler.step(output, timestep, z).prev_sample
"""

LATENT = """from diffusers import LDMPipeline

pipeline = LDMPipeline.from_pretrained("{place}")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
"""

TRANSFORMER = """from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{place}")
labels = [number % {classes} for number in range(16)]
images = pipeline(labels, guidance_scale=1.0, num_inference_steps={steps}).images
"""

OURS = """import torch
import progdist

denoiser = progdist.load("{place}")
noise = torch.randn(16, {channels}, {height}, {width})
images = progdist.sample(denoiser, noise, {steps}{condition})
"""


def _template(stock: str | None, classes: int) -> str:
    """The code that samples a model of some stock pipeline or scheduler."""
    match stock:
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
    stock: str | None,
    image: Sequence[int],
    latent_shape: Sequence[int],
    records: Sequence[Mapping[str, Any]],
) -> str:
    """The text.

    Args:
        description: what progdist.json says.
        stock: the class of the folder's stock pipeline or scheduler, if it has one.
        image: (channels, height, width).
        latent_shape: the shape of what the network sees: `image`, or that of its latents.
        records: evaluations of this model.
    """
    counts = list(description["steps"])
    steps, classes = (counts or [256])[0], len(description["classes"])
    template = _template(stock, classes)
    labels = f"torch.arange(16) % {classes}" if classes else "None"
    condition = f", class_labels={labels}" if classes else ""
    numbers = {
        "channels": latent_shape[0],
        "height": latent_shape[1],
        "width": latent_shape[2],
        "classes": classes,
        "labels": labels,
        "condition": condition,
    }
    code = template.format(place=".", steps=steps, **numbers)
    size = f"{image[1]}x{image[2]} with {image[0]} channel{'s' if image[0] > 1 else ''}"
    lines = [
        HEADER,
        f"# A diffusion model that samples in {_listed(counts)}\n" if counts else "# A diffusion model\n",
        f"Images of {size}, "
        + (f"{classes} classes" if classes else "unconditional")
        + f"; trained on {description['data']}.",
        _lineage(description),
        f"\n```python\n{code}```\n",
        _measured(records),
    ]
    return "\n".join(line for line in lines if line)


def _listed(counts: Sequence[int]) -> str:
    return f"{' or '.join(map(str, counts))} step{'s' if list(counts) != [1] else ''}"


def _lineage(description: Mapping[str, Any]) -> str:
    if not description["lineage"]:
        return ""
    chain = " -> ".join(map(str, (*description["lineage"], *description["steps"])))
    return (
        f"Made by [progressive distillation](https://arxiv.org/abs/2202.00512), {chain} steps. It is good at "
        f"{_listed(description['steps'])} and poor at any other count."
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
    return "Measured against its training data:\n\n" + "\n".join(rows) + "\n"
