"""What is checked of a given teacher before a run begins or is estimated: that chain, guidance and options fit."""

from progdist._utils.errors import UserError
from progdist.methods.conversion import ends_above_zero_snr
from progdist.models.model import Model
from progdist.models.prompts import Guidance, has_dial, takes_guidance
from progdist.recipes.from_teacher import taught_guidance
from progdist.recipes.recipe import Recipe
from progdist.students.lora_file import LOADERS
from progdist.training.lora import require_peft
from progdist.training.state import bitsandbytes


def check_options(recipe: Recipe, model: Model | None) -> None:
    """Refuse options that do not suit a given teacher, or have no effect, or whose library is missing.

    Args:
        recipe: of the run.
        model: the given teacher; None where one is trained.
    """
    if any(config.optimizer == "adamw8bit" for config in recipe.train_configs()):
        bitsandbytes()
    if recipe.evaluate.guidance is not None:
        _check_measured_scale(recipe.evaluate.guidance, taught_guidance(recipe, model) if model else None)
    if model is not None:
        _check_teacher(recipe, model)


def _check_measured_scale(asked: float, taken: Guidance | None) -> None:
    """Refuse a guidance scale to measure at that students do not take."""
    if not isinstance(taken, tuple):
        raise UserError(
            f"evaluate.guidance is {asked:g}, and the students take no guidance scale: leave it out or distil a range, "
            "e.g. --guidance 1:8"
        )
    if not taken[0] <= asked <= taken[1]:
        raise UserError(f"evaluate.guidance is {asked:g}, and the students learn {taken[0]:g} to {taken[1]:g}")


def _check_teacher(recipe: Recipe, model: Model) -> None:
    """Refuse a teacher that the chain or an option of the recipe does not suit."""
    _check_steps(recipe, model)
    _check_guidance(recipe, model)
    _check_schedule(recipe, model)
    if model.autoencoder and recipe.evaluate.clip:
        raise UserError("evaluate.clip is of images, and a latent model's samples are latents: set it to false")
    if model.autoencoder and recipe.data.flip:
        raise UserError("data.flip is of images, and a latent model sees latents, encoded once: set it to false")
    if recipe.lora is not None:
        _check_lora(model)


def _check_steps(recipe: Recipe, model: Model) -> None:
    """Refuse a chain that does not begin where a distilled teacher ends, or that stock samplers would not visit."""
    counts = recipe.distill.counts()
    if model.steps and counts[0] not in model.steps:
        known = ", ".join(map(str, model.steps))
        raise UserError(
            f"the teacher was distilled for {known} steps and the chain starts at {counts[0]}: set distill.start "
            "(or distill.chain) to start there"
        )
    for count in counts:
        if model.denoiser.timesteps % count:
            raise UserError(
                f"the chain's {count} steps do not divide the teacher's {model.denoiser.timesteps} timesteps, so "
                "stock samplers would visit other times: choose counts that do"
            )


def _check_guidance(recipe: Recipe, model: Model) -> None:
    """Refuse guidance that a teacher has taken in, and what leads away from the wrong thing."""
    conversion, network = recipe.conversion, model.denoiser.network
    if isinstance(model.guidance, tuple) and conversion.guidance is not None:
        raise UserError("the teacher takes a guidance scale already, which its students learn from it: leave guidance")
    if model.steps and conversion.guidance is not None:
        raise UserError("guidance is taken in at all times, and a distilled teacher knows only its own: leave it out")
    if model.text is None and conversion.negative is not None:
        raise UserError(
            "conversion.negative is a prompt, and the teacher takes none: leave it out; conversion.null_class names a "
            "class"
        )
    if model.text is None:
        return
    if conversion.null_class is not None:
        raise UserError("conversion.null_class is of classes, and the teacher takes captions: leave it out")
    if isinstance(conversion.guidance, tuple) and not has_dial(network):
        raise UserError(
            f"a {model.text.kind} gives its network no guidance scale, so its students have no range: give a single one"
        )
    if conversion.negative is not None and takes_guidance(network):
        raise UserError(
            "conversion.negative is of guidance by two evaluations, and this teacher takes one: leave it out"
        )


def _check_schedule(recipe: Recipe, model: Model) -> None:
    """Refuse a choice between two schedules where there is one."""
    if recipe.conversion.zero_terminal_snr is None:
        return
    if model.steps:
        raise UserError(
            "conversion.zero_terminal_snr is of stage 0, and a distilled teacher knows its own times: leave it out"
        )
    if not ends_above_zero_snr(model.denoiser.schedule):
        raise UserError(
            "conversion.zero_terminal_snr is of a schedule that ends above zero SNR, and the teacher's does not: leave "
            "it out"
        )


def _check_lora(model: Model) -> None:
    """Refuse a LoRA file that no pipeline would load."""
    if model.text is None:
        raise UserError(
            "lora makes a file for the pipeline of a text-to-image teacher, and this teacher's loads none: set "
            "distill.lora_rank for students of low rank"
        )
    if model.text.kind not in LOADERS:
        raise UserError(
            f"lora makes a file for {' or '.join(LOADERS)}, and a {model.text.kind} loads no LoRA file of these: "
            "set distill.lora_rank for students of low rank"
        )
    require_peft()
