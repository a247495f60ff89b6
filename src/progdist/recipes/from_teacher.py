"""The recipe for an existing teacher: its chain, its data transform, its stages.

Stock samplers visit our grid only at step counts that divide the teacher's number of timesteps T, so every count of the
chain does. The chain starts at the largest such count, up to `start`, that is a multiple of the target. Each ratio is a
prime; the largest ratios come first, where a step changes least: 200 -> 40 -> 8 -> 4 for T = 1000.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.words import any_of
from progdist.data.samples import is_teacher
from progdist.data.sources import open_source
from progdist.data.tables import Columns
from progdist.recipes.files import validated
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Data
from progdist.recipes.stated import about_teacher, run_name
from progdist.teachers.open import Teacher
from progdist.training.config import DEFAULTS

NO_COLUMNS = Columns()


def divisor_chain(num_train_timesteps: int, target: int, start: int) -> list[int]:
    """Step counts from at most `start` down to `target`, all dividing `num_train_timesteps`, each ratio a prime.

    Raises:
        UserError: the target does not divide `num_train_timesteps`, or the chain would be empty.
    """
    if target < 1 or num_train_timesteps % target:
        divisors = [count for count in range(1, 17) if num_train_timesteps % count == 0]
        raise UserError(
            f"--steps {target} does not divide the teacher's {num_train_timesteps} timesteps, so stock samplers would "
            f"visit other times: choose one of {', '.join(map(str, divisors))}"
        )
    multiples = range(target, min(start, num_train_timesteps) + 1, target)
    counts = [count for count in multiples if num_train_timesteps % count == 0]
    if counts[-1:] in ([], [target]):
        raise UserError(f"--start {start} leaves nothing to distil, expected at least {2 * target}")
    ratio, factors = counts[-1] // target, []
    for prime in range(2, ratio + 1):
        while ratio % prime == 0:
            factors.append(prime)
            ratio //= prime
    chain = [counts[-1]]
    for factor in reversed(factors):
        chain.append(chain[-1] // factor)
    return chain


@dataclass(frozen=True)
class Request:
    """The options of `progdist distill`."""

    model: str  # the teacher's folder, hub name or file
    data: str  # the source of images
    name: str  # name of the run
    steps: int  # steps of the last student
    prompts: str | None = None  # text file of prompts, for samples of the teacher
    columns: Columns = NO_COLUMNS  # the named columns of a table
    background: str | None = None  # the colour behind transparent pixels; None for white
    start: int = 256  # largest first count of the chain
    updates: int = DEFAULTS["distill"]["updates"]  # per stage; the last two take twice as many, as in the paper
    conversion_updates: int | None = None  # for stage 0, if it is needed; four times `updates` by default
    batch: int | None = None  # batch size of all training; None for the default
    guidance: float | tuple[float, float] | None = None  # a scale, or a range that students take as an input
    negative: str | None = None  # negative prompt of guidance; None for the empty one
    lora: int | None = None  # rank of a LoRA file for the teacher's own pipeline; None for none
    base_bits: int | None = None  # bits of the base that its adapters train on, 8 or 4; None for full precision
    method: str = "progressive"  # name of the method
    call: Mapping[str, Any] = field(default_factory=dict)  # arguments of the teacher's watched pipeline
    loras: tuple[str, ...] = ()  # LoRA files, FILE[:weight], fused into the teacher
    config: str | None = None  # folder with the configs of a single-file teacher
    initial: str | None = None  # the folder of a finished student to start from, in one stage; None for the teacher


def recipe_for_teacher(teacher: Teacher, request: Request) -> Recipe:
    """The recipe that `progdist distill` runs; errors as in `chain_for` and `frame`."""
    recipe = validated(content_for_teacher(teacher, request), (), f"distilling {request.model}")
    if request.conversion_updates is not None and not recipe.plan().converts(teacher.model):
        raise UserError("--conversion-updates applies only to a teacher that stage 0 converts: remove it")
    return recipe


def content_for_teacher(teacher: Teacher, request: Request) -> dict[str, Any]:
    """The keys and values of that recipe."""
    single = [request.start, request.steps]
    chain = single if request.initial else chain_for(teacher, request.steps, request.start)
    batch = {} if request.batch is None else {"batch": request.batch}
    conversion = {"guidance": request.guidance, "negative": request.negative, **batch}
    if request.conversion_updates is not None:
        conversion["updates"] = request.conversion_updates
    return {
        "name": run_name(request.name),
        "about": about_teacher(request.model, request.steps),
        "data": _data(teacher, request),
        "teacher": {"model": request.model, "call": dict(request.call), **_prepared(request)},
        "conversion": conversion,
        "distill": {
            "chain": chain,
            "updates": request.updates,
            "stages": {count: {"updates": 2 * request.updates} for count in chain[1:][-2:] if not request.initial},
            "method": request.method,
            "initial": request.initial,
            **batch,
        },
        "lora": request.lora,
        "base_bits": request.base_bits,
        "evaluate": {"samples": 1024},
    }


def _prepared(request: Request) -> dict[str, Any]:
    """The keys of a prepared teacher."""
    return {"loras": request.loras, "config": request.config}


def chain_for(teacher: Teacher, target: int, start: int) -> list[int]:
    """The chain of a teacher: from at most `start` steps, or from the steps that it was distilled for."""
    multiples = [count for count in teacher.model.steps if count > target and count % target == 0]
    if teacher.model.steps and not multiples:
        counts = any_of(teacher.model.steps, "step")
        raise UserError(
            f"the teacher was itself distilled for {counts}: --steps is {target}, expected a proper divisor"
        )
    most = teacher.model.denoiser.most_steps
    if teacher.model.denoiser.num_train_timesteps == 1 and 0 < target <= most:  # any count is valid
        most = target * 2 ** int(math.log2(most / target))
    return divisor_chain(most, target, max(multiples, default=start))


def _data(teacher: Teacher, request: Request) -> dict[str, Any]:
    """The keys of the data: images in the teacher's shape, or its own samples."""
    source, columns = request.data, request.columns
    if not is_teacher(source) and request.prompts is None:
        return frame(teacher, source, columns, request.background).model_dump(exclude_defaults=True)
    named = {"image_column": columns.image, "caption_column": columns.caption, "background": request.background}
    return {"source": source, "prompts": request.prompts, **named}


def frame(teacher: Teacher, source: str, columns: Columns, background: str | None = None) -> Data:
    """The data in the teacher's shape."""
    shape = teacher.model.image
    if is_teacher(source):
        raise UserError(f"{source} applies only to `progdist distill`: use a source of images")
    data = Data(source=source, image_column=columns.image, caption_column=columns.caption, background=background)
    images = open_source(source, data.transform(), columns)
    own, framed = images.shape, shape[1] == shape[2] and shape[0] in (1, 3)
    if own == shape and not (framed and images.may_differ):
        return data
    if not framed:
        raise UserError(f"the teacher makes images of {shape}: resize {source} to that shape first")
    resample = "bilinear" if max(own[1:]) < shape[1] else "area"
    data = data.model_copy(update={"size": shape[1], "channels": shape[0], "resample": resample})
    if images.reframed(data.transform()).shape != shape:
        raise UserError(f"expected data in the teacher's {shape} (channels, height, width), got {source}")
    return data
