"""A text-conditional student on disk: its teacher's pipeline folder with another network and another scheduler.

unet/ or transformer/  scheduler/  model_index.json     written
every other part that the index names                   copied byte for byte
"""

import shutil
from pathlib import Path
from typing import Any, cast

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from progdist._utils.errors import UserError
from progdist._utils.files import write_json
from progdist.models.autoencoder import Autoencoder
from progdist.models.prompts import USUAL_SIDES, Guidance, TextPipeline, guidance_input


def write_pipeline(text: TextPipeline, network: ModelMixin, scheduler: SchedulerMixin, target: Path) -> None:
    """Write the folder from which the stock pipeline samples a student.

    Raises:
        UserError: a part is missing in the folder that the others are copied from.
        OSError: it cannot be written.
    """
    index: dict[str, Any] = dict(text.index)
    written: dict[str, ModelMixin | SchedulerMixin] = {text.particulars.part: network, "scheduler": scheduler}
    for part, value in index.items():
        held = not part.startswith("_") and isinstance(value, list) and value[-1]
        if held and part not in written:
            if not (text.folder / part).is_dir():
                raise UserError(f"{text.folder} lacks {part}/: restore the folder, or save the pipeline again")
            shutil.copytree(text.folder / part, target / part)
    index |= {part: ["diffusers", type(each).__name__] for part, each in written.items()}
    write_json(target / "model_index.json", index)
    for part, each in written.items():
        each.save_pretrained(target / part)


def check_teacher(folder: Path, text: TextPipeline, network: Any, autoencoder: Autoencoder | None) -> None:  # noqa: ANN401
    """Refuse a text-conditional network that takes more than captions and latents, or a guidance scale already."""
    if guidance_input(network) is not None:
        raise UserError(f"{folder} takes a guidance scale already: give the teacher that it was made from")
    if getattr(network, "use_additional_conditions", False):
        raise UserError(f"{folder}: its network takes the size of its images, which a {text.kind} does not give it")
    latents = text.latents(network)
    channels = latents[0] if latents else network.config["in_channels"]
    if autoencoder is None or channels != cast(Any, autoencoder.network).config["latent_channels"]:
        raise UserError(
            f"{folder}: its network takes {channels} channels, which are not the latents of its vae/: expected a "
            "pipeline that makes images from prompts alone"
        )


def guidance_of(metadata: Any) -> Guidance | None:  # noqa: ANN401  (whatever JSON can hold)
    """A guidance from its description.

    Raises:
        ValueError: it is none.
    """
    numbers = metadata if isinstance(metadata, list) else [metadata]
    if metadata is None:
        return None
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        raise ValueError(f"guidance is {str(metadata)[:50]}, expected a number or two")
    least, most = float(numbers[0]), float(numbers[-1])
    return (least, most) if isinstance(metadata, list) else least


def sides_of(metadata: Any) -> tuple[int, int]:  # noqa: ANN401  (whatever JSON can hold)
    """The height and width of latents from their description; the usual ones for None.

    Raises:
        ValueError: it is none.
    """
    if metadata is None:
        return USUAL_SIDES
    if not (isinstance(metadata, list) and len(metadata) == 2 and all(side in range(1, 4097) for side in metadata)):
        raise ValueError(f"latent_sides is {str(metadata)[:50]}, expected a height and a width")
    return metadata[0], metadata[1]
