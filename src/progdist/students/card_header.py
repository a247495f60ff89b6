"""The header of a model card, the YAML between `---` that the Hugging Face hub reads.

    base_model, base_model_relation     the student's teacher: `adapter` for a LoRA file, else `finetune`
    license, license_name, license_link     those of the base's own card, if it names them
    inference.parameters                arguments for the call of a text-to-image pipeline

https://huggingface.co/docs/hub/model-cards describes the fields.
"""

import json
import re
from collections.abc import Mapping

from progdist.methods.guidance import Input
from progdist.models.model import Base, Model
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.models.prompts import Prompts

TAGS = ("diffusion", "progressive-distillation", "few-step")
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""Pattern of a repository name on the hub."""


def card_header(model: Model) -> str:
    """The header, `---` included; it names no licence if none is known."""
    lines = ["library_name: diffusers", f"pipeline_tag: {model.conditioning.task}"]
    repository = model.base.repository if model.base else None
    if repository and re.fullmatch(REPOSITORY, repository):
        lines += [f"base_model: {repository}", f"base_model_relation: {'adapter' if model.lora else 'finetune'}"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in _licence(model.base).items()]
    lines += ["tags:", *(f"- {tag}" for tag in (*TAGS, *(["lora"] if model.lora else [])))]
    if numbers := inference(model):
        lines += ["inference:", "  parameters:", *(f"    {name}: {value:g}" for name, value in numbers.items())]
    return "\n".join(["---", *lines, "---", ""])


def _licence(base: Base | None) -> dict[str, str]:
    """The fields of a base's licence; a relative link is completed if the repository is known."""
    fields = dict(base.licence) if base else {}
    link = fields.get("license_link")
    if base and link and not link.startswith(("https://", "http://")):
        del fields["license_link"]
        if base.repository:
            fields["license_link"] = f"https://huggingface.co/{base.repository}/blob/main/{link}"
    return fields


def inference(model: Model) -> Mapping[str, float]:
    """The numeric arguments for the stock pipeline's call, for a text-to-image student."""
    prompts, steps = model.conditioning, min(model.steps, default=None)
    if not isinstance(prompts, Prompts) or steps is None:
        return {}
    learned = prompts.learned
    scale = (learned.low + learned.high) / 2 if isinstance(learned, Input) else 1.0
    if not isinstance(prompts, PipelinePrompts):
        return {"num_inference_steps": steps, "guidance_scale": scale}
    pipeline = prompts.watched
    given = {**pipeline.off, **pipeline.arguments, **({pipeline.scale[0]: scale} if pipeline.scale else {})}
    numbers = {
        name: value for name, value in given.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {"num_inference_steps": steps, **numbers}


def without_licence(base: Base | None) -> str:
    """A sentence for the card of a student whose base names no licence; "" for any other."""
    if base is None or base.licence:
        return ""
    return (
        f"The licence is unknown: the card of the base model, `{base.name.replace('`', '')}`, names none. "
        "Look it up and add `license:` to the header before you share this model."
    )
