"""The model card beside an exported file: how each program is told to sample it, by what the file's header says."""

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
"""The fields of the header that the card shows, without their `progdist.`."""

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
    """The text, for a student and the files that were exported of it: of shards the first speaks for all."""
    with safetensors.safe_open(files[0], "pt") as opened:
        said: Mapping[str, str] = opened.metadata()
    base = (model.base.repository or model.base.name) if model.base else ""
    kind = "LoRA weights for" if model.lora and "progdist.rank" in said else "A whole model in the original layout of"
    rows = [f"| {name} | {said[f'progdist.{name}']} |" for name in FIELDS if f"progdist.{name}" in said]
    lines = [
        card_header(model),
        f"# {said['modelspec.title']}\n",
        f"`{files[0].name}`: {kind} {said['progdist.pipeline']}{f', distilled from {base}' if base else ''}. "
        f"{said['modelspec.usage_hint']}.\n",
        "| | |\n|---|---|",
        *rows,
        _code(model, said, base, files),
        without_licence(model.base),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _code(model: Model, said: Mapping[str, str], base: str, files: Sequence[Path]) -> str:
    """How diffusers samples one file of a U-Net; "" for what it does not read so."""
    pipeline, form = said["progdist.pipeline"], said.get("progdist.lora_format")
    if pipeline not in PIPELINES or len([file for file in files if file.suffix == ".safetensors"]) > 1:
        return ""
    times = visited_times(model)
    config: Any = cast(Any, times.scheduler).config
    changed: dict[str, Any] = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    changed["prediction_type"] = config.prediction_type
    if not math.isfinite(times.sigmas[0]):  # it begins without any signal
        changed["rescale_betas_zero_snr"] = True
    names = {"pipeline": pipeline, "file": files[0].name, "caption": CAPTION, "steps": said["progdist.steps"]}
    code = (LORA if form else WHOLE).format(**names, scheduler=SCHEDULER.format(changed=changed), base=repr(base))
    return f"\n```python\n{code}```\n"
