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
An unknown key is refused, and the nearest one that there is is named.

| recipe | what it is |
|---|---|
"""


def options_of(method: Method) -> str:
    """The options of a method with their defaults."""
    own = (f"`{each.name}` ({getattr(method.options, each.name)!r})" for each in dataclasses.fields(method.options))
    return f"of {method.name} {', '.join(own)}"


MEANINGS = {
    "name": "of the run, and of its folder below `runs/`",
    "about": "a line that `progdist recipes` shows",
    "seed": "of all randomness",
    "data": "the images",
    "noise": "the schedule of a teacher that is trained",
    "parameterization": f"what the network of a teacher that is trained predicts: {', '.join(PARAMETERIZATIONS)}",
    "network": "of a teacher that is trained",
    "teacher": "how it is trained, or `model`",
    "conversion": "stage 0",
    "distill": "the chain of students",
    "lora": "rank of the LoRA adapters that students are, for the teacher's own pipeline",
    "base_bits": "8 or 4: bits of the frozen network that these adapters train on; all if it is left out",
    "evaluate": "how models are measured",
    "tracking": "where a run is followed",
    "data.source": "e.g. `digits`, `folder:PATH`; `teacher:COUNT`: the teacher's own samples",
    "data.classes": "how many the data must have",
    "data.size": "height and width to which images are cropped and resampled",
    "data.channels": "1 for grey, 3 for colour; of images that are all grey 1 if not given, else 3",
    "data.resample": "how",
    "data.background": "colour behind transparent pixels, a name or a code such as `#ff8800`; white if none is given",
    "data.crops": "random crops of each image",
    "data.image_column": "of a table",
    "data.caption_column": "of a table",
    "data.flip": "mirror half of the images",
    "data.workers": "processes that read images",
    "data.prompts": "text file of a prompt a line, for samples of a text-to-image teacher",
    "data.steps": "in which the teacher is sampled; as many as divide the chain's first count, up to 64, if not given",
    "noise.kind": f"of the schedule: {', '.join(NOISES)}",
    "noise.log_snr_max": "of the cosine schedule, at t = 0",
    "noise.log_snr_min": "of the cosine schedule, at t = 1",
    "noise.num_train_timesteps": "T, entries in the table of noise levels",
    "network.width": "channels at full resolution",
    "network.multipliers": "of the width, a resolution each",
    "network.blocks": "residual blocks at each resolution",
    "network.attention": "resolutions with attention",
    "network.head_size": "channels of an attention head",
    "network.embedding": "channels of the embedding of time and class",
    "network.groups": "of the group norms",
    "network.dropout": "share that is dropped",
    "network.class_conditional": "whether it takes the classes of the data",
    "weighting": f"of the loss: {', '.join(WEIGHTINGS)}",
    "teacher.model": "folder, hub name or `.safetensors` file of a trained teacher, in place of a training",
    "teacher.offset": "of the timestep, in place of that of the teacher's scheduler",
    "teacher.call": "arguments of a stock pipeline that is watched, as its height or number of frames",
    "teacher.loras": "LoRA files, `FILE[:weight]`, that are fused into a stock pipeline first",
    "teacher.config": "of a teacher in one `.safetensors` file: diffusers folder of its configs and tokenizers",
    "teacher.trust": "go on although the teacher's output contradicts its folder",
    "conversion.guidance": "a scale of classifier-free guidance, or a range as an input of the student",
    "conversion.null_class": "the label that stands for no class",
    "conversion.negative": "the negative prompt",
    "conversion.zero_terminal_snr": "whether the students' schedule ends in pure noise",
    "distill.start": "the teacher's step count",
    "distill.end": "the last student's step count",
    "distill.substeps": "teacher steps to one of the student",
    "distill.chain": "all step counts, in place of the three above",
    "distill.method": f"what a student learns: {', '.join(METHODS)}",
    "options": "of the method alone: " + "; ".join(options_of(each) for each in METHODS.values() if each.options),
    "distill.initial": "folder of a finished student to start from, in a chain of one stage",
    "distill.stop": "when a stage ends early",
    "distill.stages": "what a stage overrides, by the student's step count",
    "evaluate.samples": "of each model",
    "evaluate.features": "spaces in which samples are compared with the data",
    "evaluate.metrics": "beside the two distances; `null` for precision, recall, density and coverage",
    "evaluate.reference": "files of statistics, by feature space",
    "evaluate.weights": "files or folders of weights, by network",
    "evaluate.resamples": "of the distances' intervals",
    "evaluate.batch": "images made at a time",
    "evaluate.precision": "of sampling",
    "evaluate.clip": "keep every denoised image within [-1, 1]",
    "evaluate.cuda_graphs": "capture the network's kernels",
    "evaluate.most_steps": "the largest step count that is measured",
    "evaluate.teacher_every": "counts of the chain between measurements of the teacher",
    "evaluate.solver": "measured beside DDIM",
    "evaluate.guidance": "scale at which models that take one are measured",
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
