"""The recipe for a given teacher: its chain, its data transform, its stages.

Stock samplers visit our grid only at step counts that divide the teacher's number of timesteps T, so every count of the
chain does. It starts at the largest such count, up to `start`, that the target divides, and each ratio is a prime; the
largest ratios come first, where a step changes least: 200 -> 40 -> 8 -> 4 for T = 1000.
"""

import re
from dataclasses import replace
from pathlib import Path

from progdist._utils.errors import UserError
from progdist.data.sources import load_images
from progdist.data.tables import Columns
from progdist.diffusion.denoiser import Denoiser
from progdist.methods.conversion import converted_form, needs_conversion, zero_terminal_snr_of_students
from progdist.models.model import Model
from progdist.models.prompts import Guidance, takes_guidance
from progdist.recipes.files import validated
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Data
from progdist.teachers.open import Teacher


def divisor_chain(timesteps: int, target: int, start: int) -> list[int]:
    """Step counts from at most `start` down to `target`, all dividing `timesteps`, each ratio a prime.

    Raises:
        UserError: the target does not divide `timesteps`, or there is nothing to divide.
    """
    if target < 1 or timesteps % target:
        divisors = [count for count in range(1, 17) if timesteps % count == 0]
        raise UserError(
            f"--steps {target} does not divide the teacher's {timesteps} timesteps, so stock samplers would visit "
            f"other times: choose one of {', '.join(map(str, divisors))}"
        )
    counts = [count for count in range(target, min(start, timesteps) + 1, target) if timesteps % count == 0]
    if counts[-1:] in ([], [target]):
        raise UserError(f"--start {start} leaves nothing to distil: give at least {2 * target}")
    ratio, factors = counts[-1] // target, []
    for prime in range(2, ratio + 1):
        while ratio % prime == 0:
            factors.append(prime)
            ratio //= prime
    chain = [counts[-1]]
    for factor in reversed(factors):
        chain.append(chain[-1] // factor)
    return chain


def recipe_for_teacher(
    source_model: str,
    teacher: Teacher,
    source: str,
    columns: Columns | None = None,
    *,
    name: str,
    steps: int,
    start: int = 256,
    updates: int = 1000,
    conversion_updates: int | None = None,
    batch: int = 64,
    guidance: float | tuple[float, float] | None = None,
    negative: str | None = None,
    lora: int | None = None,
) -> Recipe:
    """The recipe that `progdist distill` runs.

    Args:
        source_model: the teacher's folder or hub name.
        teacher: as read from there.
        source: the data.
        columns: of a table, those that are named.
        name: of the run.
        steps: the last student's.
        start: the most steps of the chain's first count.
        updates: of each stage; the last two take twice as many, as the paper's do.
        conversion_updates: of stage 0, if it is needed; four times `updates` if not given.
        batch: of all training.
        guidance: its scale, or the least and the largest of a dial; None for no guidance.
        negative: the prompt that guidance leads away from; None for the empty one.
        lora: the rank of a LoRA file for the teacher's own pipeline; None for none.

    Raises:
        UserError: no chain leads to `steps`, or the data cannot be brought to the teacher's shape.
    """
    chain = chain_for(teacher, steps, start)
    training = {"batch": batch, "learning_rate": 5e-4}
    content = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "run",
        "about": f"{source_model} distilled to {steps} steps",
        "data": frame(teacher, source, columns or Columns()).model_dump(),
        "teacher": {"model": source_model},
        "conversion": {
            "updates": conversion_updates or 4 * updates,
            "guidance": guidance,
            "negative": negative,
            **training,
        },
        "distill": {
            "chain": chain,
            "updates": updates,
            "stages": {count: {"updates": 2 * updates} for count in chain[1:][-2:]},
            **training,
        },
        "lora": lora,
        "evaluate": {"samples": 1024},
    }
    return validated(content, (), f"distilling {source_model}")


def chain_for(teacher: Teacher, target: int, start: int) -> list[int]:
    """The chain of a teacher: from at most `start` steps, or from the steps that it was itself distilled for.

    Raises:
        UserError: none leads to `target`.
    """
    known = [count for count in teacher.model.steps if count > target and count % target == 0]
    if teacher.model.steps and not known:
        counts = ", ".join(map(str, teacher.model.steps))
        raise UserError(
            f"the teacher was itself distilled for {counts} steps, of which --steps {target} is no proper divisor: "
            "choose one that is"
        )
    return divisor_chain(teacher.model.denoiser.timesteps, target, max(known, default=start))


def frame(teacher: Teacher, source: str, columns: Columns) -> Data:
    """The data in the shape that the teacher makes."""
    shape, data = teacher.model.image, Data(source=source, image_column=columns.image, caption_column=columns.caption)
    own = load_images(source, columns=columns).shape
    if own == shape:
        return data
    if shape[1] != shape[2] or shape[0] not in (1, 3):
        raise UserError(f"the teacher makes images of {shape}: bring {source} to that shape yourself")
    resample = "bilinear" if max(own[1:]) < shape[1] else "area"
    data = data.model_copy(update={"size": shape[1], "channels": shape[0], "resample": resample})
    if load_images(source, data.transform(), columns).shape != shape:
        raise UserError(f"{source} cannot be brought to the teacher's {shape} (channels, height, width)")
    return data


def default_output(source: str, steps: int) -> Path:
    """Where the run of a teacher goes if nothing is said."""
    return Path("runs") / f"{Path(source).name}-{steps}"


def taught_guidance(recipe: Recipe, given: Model) -> Guidance | None:
    """What the students of a given model take in: a scale for all, the least and the largest of a dial, or None.

    Where the model's network takes a scale itself, so do its students: one for all is then a dial of one place.
    """
    asked, own = recipe.conversion.guidance, given.guidance
    if given.text is None or not takes_guidance(given.denoiser.network):
        return own if asked is None else asked
    scale = asked or own or given.text.usual_guidance
    return scale if isinstance(scale, tuple) else (scale, scale)


def needs_stage_0(recipe: Recipe, given: Model) -> bool:
    """Whether a given teacher has to be converted before it can be halved; to halve eps is what `lora` is for."""
    guided = recipe.conversion.guidance is not None and not takes_guidance(given.denoiser.network)
    if guided or recipe.lora is not None:
        return guided
    return needs_conversion(given.denoiser, zero_terminal_snr=_zero_terminal_snr(recipe, given))


def student_form(recipe: Recipe, given: Model) -> Denoiser:
    """A given teacher's network with the form that its students take: with `lora` the teacher's own."""
    if recipe.lora is not None:
        return given.denoiser
    return converted_form(given.denoiser, zero_terminal_snr=_zero_terminal_snr(recipe, given))


def _zero_terminal_snr(recipe: Recipe, given: Model) -> bool:
    conversion = recipe.conversion
    guided = conversion.guidance is not None
    return zero_terminal_snr_of_students(given.denoiser, conversion.zero_terminal_snr, guided=guided)


def unconverted(recipe: Recipe, given: Model) -> Model:
    """A given teacher that needs no stage 0, with the guidance that its students take in."""
    text = replace(given.text, guidance=taught_guidance(recipe, given)) if given.text else None
    return replace(given, text=text)
