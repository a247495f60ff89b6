"""The pipelines that tests have had from the start: Stable Diffusion, SDXL, PixArt-Sigma, SD3 and Flux."""

from functools import partial

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from support.text import BETAS, write_sd, write_sdxl
from support.text_transformers import write_flux, write_pixart, write_sd3
from tiny.registry import written

SIZE = {"height": 16, "width": 16}

written("StableDiffusionPipeline", write_sd, **SIZE)
written(
    "StableDiffusionXLPipeline",
    partial(write_sdxl, scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)),
    **SIZE,
)
written("StableDiffusionXLPipeline/Euler", write_sdxl, **SIZE)
written("PixArtSigmaPipeline", write_pixart, **SIZE, max_sequence_length=32, use_resolution_binning=False)
written("StableDiffusion3Pipeline", write_sd3, **SIZE, max_sequence_length=32)
written("FluxPipeline", write_flux, **SIZE, max_sequence_length=32)
written("FluxPipeline/unguided", partial(write_flux, guidance_embeds=False), **SIZE, max_sequence_length=32)
