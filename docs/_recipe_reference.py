"""The page of all recipe keys, made as the site is built from the schema, its comments and the table of defaults."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args

from mkdocs.structure.files import File, Files
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from progdist.diffusion.loss import WEIGHTINGS
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.methods import METHODS, Method
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import NOISES
from progdist.recipes.shipped import shipped
from progdist.recipes.training import HALVING
from progdist.training.config import CONVERSION_UPDATES, DEFAULTS

HEAD = """# Recipes

A recipe is a YAML file, or the name of one that ships. `--set section.key=value` changes a key on the command line.
An unknown key is refused, and the error suggests the nearest known one.

| recipe | what it is |
|---|---|
"""


def options_of(method: Method) -> str:
    """The options of a method with their defaults."""
    own = (f"`{each.name}` ({getattr(method.options, each.name)!r})" for each in dataclasses.fields(method.options))
    return f"for {method.name} {', '.join(own)}"


MEANINGS = {
    "name": "name of the run, and of its folder in `runs/`",
    "about": "line that `progdist recipes` shows",
    "seed": "seed of all random numbers",
    "data": "the images",
    "noise": "noise schedule of a teacher trained here",
    "parameterization": f"what the network of a teacher trained here predicts: {', '.join(PARAMETERIZATIONS)}",
    "network": "network of a teacher trained here",
    "teacher": "how the teacher is trained, or `model` for a trained one",
    "conversion": "stage 0, which converts the teacher",
    "distill": "the chain of students",
    "lora": "rank of the LoRA adapters that are trained, for the teacher's own pipeline",
    "base_bits": "bits of the frozen base that the adapters train on, 8 or 4 (default: full precision)",
    "evaluate": "how models are measured",
    "tracking": "tracker: `tensorboard`, `wandb` or `mlflow`",
    "data.source": "e.g. `digits`, `folder:PATH`; `teacher:COUNT` for the teacher's own samples",
    "data.classes": "number of classes that the data must have",
    "data.size": "height and width to which images are cropped and resampled",
    "data.channels": "1 for grey, 3 for colour; by default 1 if all images are grey, else 3",
    "data.resample": "filter for resizing",
    "data.background": "colour behind transparent pixels, a name or a code such as `#ff8800` (default: white)",
    "data.crops": "random crops of each image",
    "data.image_column": "column of the images in a table",
    "data.caption_column": "column of the captions in a table",
    "data.flip": "mirror half of the images",
    "data.workers": "processes that read images",
    "data.prompts": "text file with one prompt per line, for samples of a text-to-image teacher",
    "data.steps": "sampling steps of the teacher (default: as many as divide the chain's first count, up to 64)",
    "noise.kind": f"the schedule: {', '.join(NOISES)}",
    "noise.log_snr_max": "log-SNR of the cosine schedule at t = 0",
    "noise.log_snr_min": "log-SNR of the cosine schedule at t = 1",
    "noise.num_train_timesteps": "T, entries in the table of noise levels",
    "network.width": "channels at full resolution",
    "network.multipliers": "factors of the width, one per resolution",
    "network.blocks": "residual blocks per resolution",
    "network.attention": "resolutions with attention",
    "network.head_size": "channels of an attention head",
    "network.embedding": "channels of the embedding of time and class",
    "network.groups": "groups of the group norms",
    "network.dropout": "dropout probability",
    "network.class_conditional": "whether the network takes the classes of the data",
    "weighting": f"weighting of the loss: {', '.join(WEIGHTINGS)}",
    "teacher.model": "folder, hub name or `.safetensors` file of a trained teacher; no teacher is trained then",
    "teacher.offset": "timestep offset (default: that of the teacher's scheduler)",
    "teacher.call": "arguments of a watched pipeline's own call, such as its height or number of frames",
    "teacher.loras": "LoRA files, `FILE[:weight]`, to fuse into a stock pipeline first",
    "teacher.config": "diffusers folder with the configs and tokenizers of a teacher that is one `.safetensors` file",
    "teacher.trust": "continue even if the teacher's output contradicts its folder",
    "conversion.guidance": "scale of classifier-free guidance to distil, or a range as an input of the student",
    "conversion.null_class": "label of the null class",
    "conversion.negative": "negative prompt to distil",
    "conversion.zero_terminal_snr": "whether the students' schedule ends in pure noise",
    "distill.start": "the teacher's step count",
    "distill.end": "the last student's step count",
    "distill.substeps": "teacher steps per student step",
    "distill.chain": "all step counts, instead of the three keys above",
    "distill.method": f"what a student learns: {', '.join(METHODS)}",
    "options": "options of the method: " + "; ".join(options_of(each) for each in METHODS.values() if each.options),
    "distill.initial": "folder of a finished student to start from, in a chain of one stage",
    "distill.stop": "rule that ends a stage early",
    "distill.stages": "overrides for single stages, by the student's step count",
    "evaluate.samples": "samples of each model",
    "evaluate.features": "feature spaces in which samples are compared with the data",
    "evaluate.metrics": "metrics besides the two distances; `null` for precision, recall, density and coverage",
    "evaluate.reference": "files of statistics, by feature space",
    "evaluate.weights": "files or folders of weights, by network",
    "evaluate.resamples": "resamples for the intervals of the distances",
    "evaluate.batch": "images made at a time",
    "evaluate.precision": "precision of sampling",
    "evaluate.clip": "keep every denoised image within [-1, 1]",
    "evaluate.cuda_graphs": "capture the network's kernels as CUDA graphs",
    "evaluate.most_steps": "largest step count that is measured",
    "evaluate.teacher_every": "step counts of the chain between measurements of the teacher",
    "evaluate.solver": "sampler that is measured besides DDIM",
    "evaluate.guidance": "guidance scale at which models with such an input are measured",
}
"""What a key means, where no comment in the class of its section says it."""


FIELD = re.compile(r"^((?:    # .*\n)*)    (\w+): [^#\n]*(?:# (.*))?$", re.MULTILINE)
"""A field of a class: comment lines above it, its name, the comment beside it."""

ARGUMENT = re.compile(r"^        (\w+): ((?:.+)(?:\n {12}.*)*)$", re.MULTILINE)
"""A field in the docstring of its class."""


def is_section(kind: type) -> bool:
    """Whether it is a class of recipe keys: a model or a dataclass of pydantic's."""
    return issubclass(kind, BaseModel) or is_dataclass(kind)


def fields(part: type) -> dict[str, FieldInfo]:
    """The keys of a section."""
    return getattr(part, "__pydantic_fields__")  # noqa: B009  (of models and of dataclasses)


def sections(part: type, name: str = "") -> Iterator[tuple[str, type]]:
    """Every section of a recipe with its dotted name."""
    yield name, part
    for key, field in fields(part).items():
        inner = [each for outer in get_args(field.annotation) for each in (outer, *get_args(outer))]
        for kind in (field.annotation, *inner):
            if isinstance(kind, type) and is_section(kind):
                where = f"{name}.{key}" if name else key
                yield from sections(kind, f"{where}.N" if key == "stages" else where)


def listed(part: type) -> dict[str, str]:
    """What the comments of a class and of those it is derived from say of their fields: beside each, or above it."""
    meanings: dict[str, str] = {}
    for each in part.__mro__:
        source = inspect.getsource(each) if each.__module__.startswith("progdist.") and is_section(each) else ""
        for above, key, beside in FIELD.findall(source):
            meanings.setdefault(key, beside or re.sub(r"\n? +# ", " ", above).strip())
        for key, text in ARGUMENT.findall((source and each.__doc__) or ""):
            meanings[key] = meanings.get(key) or " ".join(text.split()).removesuffix(".")
    return meanings


def meaning(name: str, key: str, part: type) -> str:
    """What a key means."""
    own = MEANINGS.get(f"{name}.{key}" if name else key) or listed(part).get(key)
    stage = listed(DEFAULTS_OF).get(key, "") if name == "distill.stages.N" else ""
    return own or stage or MEANINGS.get(key, "")


def default(name: str, key: str, field: FieldInfo) -> str:
    """The default of a key, from the table of defaults where that has one."""
    if name == "distill.stages.N":
        return "as in `distill`"
    if (name, key) == ("conversion", "updates"):
        return f"{CONVERSION_UPDATES} times `distill.updates`"
    if key in DEFAULTS.get(name, {}):
        return f"`{DEFAULTS[name][key]!r}`"
    if name == "distill" and key in HALVING:
        return f"`{HALVING[key]}`"
    if name == "" and key in DEFAULTS:
        return "below"
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "below" if isinstance(value, BaseModel) else f"`{value!r}`"


def kinds(schema: dict[str, Any]) -> str:
    """The types of a key, in words."""
    each = schema.get("anyOf", [schema])
    words = [", ".join(map(str, one["enum"])) if "enum" in one else one.get("type", "") for one in each]
    return " or ".join(word or ("section" if "$ref" in one else "any") for word, one in zip(words, each, strict=True))


DEFAULTS_OF = dict(sections(Recipe))["distill"]
"""The section whose keys a stage overrides."""


def table(name: str, part: type) -> str:
    """One section's keys, types, defaults and meanings."""
    title, about = f"`{name}`" if name else "At the top", inspect.cleandoc(part.__doc__ or "").partition("\n\nArgs:")[0]
    lines = [f"\n## {title}\n", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    properties = TypeAdapter(part).json_schema()["properties"]
    for key, field in fields(part).items():
        lines.append(
            f"| `{key}` | {kinds(properties[key])} | {default(name, key, field)} | {meaning(name, key, part)} |"
        )
    return "\n".join(lines) + "\n"


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the page."""
    rows = "".join(f"| `{name}` | {read_recipe(name).about} |\n" for name in shipped())
    text = HEAD + rows + "".join(table(name, part) for name, part in sections(Recipe))
    files.append(File.generated(config, "recipes.md", content=text))
    return files
