"""The header of a file of weights: strings that `safetensors.safe_open(...).metadata()` returns.

`progdist.*` describe how to sample it, with `progdist.sigmas` as in `visited_times`; `modelspec.*` are the fields of
Stability AI's ModelSpec 1.0.0, for other programs.
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
"""ModelSpec's names that differ from the pipeline's class."""


def sampling_header(model: Model, times: VisitedTimes, base: str) -> dict[str, str]:
    """The fields of every file: how to sample a student, and its teacher."""
    steps = str(len(times.timesteps))
    fields = {
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
        fields["modelspec.prediction_type"] = {"epsilon": "epsilon", "v_prediction": "v"}[times.prediction]
    if model.base and model.base.licence:
        named = model.base.licence
        found = named["license"]
        fields["modelspec.license"] = named.get("license_name", found) if found == "other" else found
    return fields


def guidance(model: Model) -> str:
    """The distilled guidance scale, the range of a guidance input, or "none"."""
    match model.guidance:
        case Fixed(scale):
            return f"{scale:g}, distilled in"
        case Input(low, high) if low == high:
            return f"{low:g}, an input of the network"
        case Input(low, high):
            return f"{low:g} to {high:g}, an input of the network"
    return "none"


def architecture(model: Model) -> str:
    """ModelSpec's name of a model's architecture, as in kohya's scripts if they support it."""
    pipeline, config = str(model.conditioning.pipeline), cast(Any, model.denoiser.network).config
    if pipeline == "StableDiffusionPipeline":
        if config.get("cross_attention_dim") != 1024:
            return "stable-diffusion-v1"
        return "stable-diffusion-v2-768-v" if model.denoiser.parameterization.name == "v" else "stable-diffusion-v2-512"
    if pipeline == "FluxPipeline":
        return "flux-1-dev" if config.get("guidance_embeds") else "flux-1-schnell"
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", pipeline.removesuffix("Pipeline")).lower()
    return ARCHITECTURES.get(pipeline, words)
