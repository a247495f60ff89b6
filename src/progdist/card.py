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

OURS = """import torch
import progdist

denoiser = progdist.load("{place}")
images = progdist.sample(denoiser, torch.randn(16, {channels}, {height}, {width}), {steps})
"""


def card(
    told: Mapping[str, Any], scheduler: str | None, image: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> str:
    """The text.

    Args:
        told: what progdist.json says.
        scheduler: the class of the folder's stock scheduler, if it has one.
        image: (channels, height, width).
        records: evaluations of this model.
    """
    counts = list(told["steps"])
    steps, classes = (counts or [256])[0], len(told["classes"])
    template = {"DDIMScheduler": CLASSES if classes else PLAIN, "FlowMatchEulerDiscreteScheduler": FLOW}.get(
        scheduler or "", OURS
    )
    labels = f"torch.arange(16) % {classes}" if classes else "None"
    numbers = {"channels": image[0], "height": image[1], "width": image[2], "classes": classes, "labels": labels}
    code = template.format(place=".", steps=steps, **numbers)
    size = f"{image[1]}x{image[2]} with {image[0]} channel{'s' if image[0] > 1 else ''}"
    lines = [
        HEADER,
        f"# A diffusion model that samples in {_listed(counts)}\n" if counts else "# A diffusion model\n",
        f"Images of {size}, "
        + (f"{classes} classes" if classes else "unconditional")
        + f"; trained on {told['data']}.",
        _lineage(told),
        f"\n```python\n{code}```\n",
        _measured(records),
    ]
    return "\n".join(line for line in lines if line)


def _listed(counts: Sequence[int]) -> str:
    return f"{' or '.join(map(str, counts))} step{'s' if list(counts) != [1] else ''}"


def _lineage(told: Mapping[str, Any]) -> str:
    if not told["lineage"]:
        return ""
    chain = " -> ".join(map(str, (*told["lineage"], *told["steps"])))
    return (
        f"Made by [progressive distillation](https://arxiv.org/abs/2202.00512), {chain} steps. It is good at "
        f"{_listed(told['steps'])} and poor at any other count."
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
