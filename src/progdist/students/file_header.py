"""What a file of weights says of itself in its header: strings, which `safetensors.safe_open(...).metadata()` gives.

`progdist.*` say how it is sampled, with `progdist.sigmas` as `visited_times` has them; `modelspec.*` are the fields of
Stability AI's ModelSpec 1.0.0, which others read.
"""

import re
from pathlib import Path
from typing import Any, cast

from progdist.methods.guidance import Fixed, Input
from progdist.models.model import Model
from progdist.students.visited_times import VisitedTimes, plain

ARCHITECTURES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
    "Lumina2Pipeline": "lumina-2",
}
"""ModelSpec's names, where they are not those of the pipeline's class."""


def sampling_header(model: Model, times: VisitedTimes, base: str) -> dict[str, str]:
    """The fields that every file has: how a student is sampled, and what it was distilled from."""
    steps = str(len(times.timesteps))
    said = {
        "format": "pt",
        "progdist.base_model": base,
        "progdist.pipeline": str(model.conditioning.pipeline),
        "progdist.method": model.method,
        "progdist.steps": steps,
        "progdist.guidance": guidance(model),
        "progdist.cfg": "1",
        "progdist.sampler": "euler",
        "progdist.scheduler": type(times.scheduler).__name__,
        "progdist.timesteps": plain(times.timesteps),
        "progdist.sigmas": plain(times.sigmas),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"{Path(base).name or 'A student'} in {steps} steps",
    }
    if times.prediction in ("epsilon", "v_prediction"):
        said["modelspec.prediction_type"] = {"epsilon": "epsilon", "v_prediction": "v"}[times.prediction]
    if model.base and model.base.licence:
        named = model.base.licence
        found = named["license"]
        said["modelspec.license"] = named.get("license_name", found) if found == "other" else found
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
