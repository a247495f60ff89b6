"""The model card of an exported file: how to sample it in each program, from the file's header."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors

from progdist.models.model import Model
from progdist.models.pipelines import PIPELINES
from progdist.students.card import CAPTION
from progdist.students.card_header import card_header, without_licence
from progdist.students.visited_times import visited_times

FIELDS = ("steps", "sampler", "cfg", "sigmas", "timesteps", "guidance", "dtype", "rank", "lora_format", "pipeline")
"""The header fields shown in the card, without the prefix `progdist.`."""

WHOLE = """from diffusers import DDIMScheduler, {pipeline}

pipeline = {pipeline}.from_single_file("{file}")
{scheduler}
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale=1.0).images
"""

LORA = """from diffusers import DDIMScheduler, {pipeline}

pipeline = {pipeline}.from_pretrained({base})
pipeline.load_lora_weights(".", weight_name="{file}")
{scheduler}
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale=1.0).images
"""

SCHEDULER = """changed = {changed}
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changed)"""


def file_card(model: Model, files: Sequence[Path]) -> str:
    """The text, for a student and its exported files; the header of the first shard holds for all."""
    with safetensors.safe_open(files[0], "pt") as opened:
        header: Mapping[str, str] = opened.metadata()
    base = (model.base.repository or model.base.name) if model.base else ""
    kind = "LoRA weights for" if model.lora and "progdist.rank" in header else "A whole model in the original layout of"
    rows = [f"| {name} | {header[f'progdist.{name}']} |" for name in FIELDS if f"progdist.{name}" in header]
    lines = [
        card_header(model),
        f"# {header['modelspec.title']}\n",
        f"`{files[0].name}`: {kind} {header['progdist.pipeline']}{f', distilled from {base}' if base else ''}. "
        f"{header['modelspec.usage_hint']}.\n",
        "| | |\n|---|---|",
        *rows,
        _code(model, header, base, files),
        without_licence(model.base),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _code(model: Model, header: Mapping[str, str], base: str, files: Sequence[Path]) -> str:
    """Code that samples one file of a U-Net in diffusers; "" for files that it does not read this way."""
    pipeline, form = header["progdist.pipeline"], header.get("progdist.lora_format")
    if pipeline not in PIPELINES or len([file for file in files if file.suffix == ".safetensors"]) > 1:
        return ""
    times = visited_times(model)
    config: Any = cast(Any, times.scheduler).config
    changed: dict[str, Any] = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    changed["prediction_type"] = config.prediction_type
    if not math.isfinite(times.sigmas[0]):  # it starts at zero SNR
        changed["rescale_betas_zero_snr"] = True
    names = {"pipeline": pipeline, "file": files[0].name, "caption": CAPTION, "steps": header["progdist.steps"]}
    code = (LORA if form else WHOLE).format(**names, scheduler=SCHEDULER.format(changed=changed), base=repr(base))
    return f"\n```python\n{code}```\n"
