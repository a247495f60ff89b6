"""A text-conditional student on disk: its teacher's pipeline folder with another network and another scheduler.

unet/  scheduler/  model_index.json       written
every other part that the index names     copied byte for byte
"""

import shutil
from pathlib import Path
from typing import Any, cast

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from progdist._utils.errors import UserError
from progdist._utils.files import write_json
from progdist.models.autoencoder import Autoencoder
from progdist.models.text.pipeline import Guidance, TextPipeline, guidance_input

WRITTEN = ("unet", "scheduler")
"""The parts that a student has of its own."""


def write_pipeline(text: TextPipeline, network: UNet2DConditionModel, scheduler: DDIMScheduler, target: Path) -> None:
    """Write the folder from which the stock pipeline samples a student.

    Raises:
        UserError: a part is missing in the folder that the others are copied from.
        OSError: it cannot be written.
    """
    index: dict[str, Any] = dict(text.index)
    for part, value in index.items():
        held = not part.startswith("_") and isinstance(value, list) and value[-1]
        if held and part not in WRITTEN:
            if not (text.folder / part).is_dir():
                raise UserError(f"{text.folder} lacks {part}/: restore the folder, or save the pipeline again")
            shutil.copytree(text.folder / part, target / part)
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    write_json(target / "model_index.json", index)
    network.save_pretrained(target / "unet")
    scheduler.save_pretrained(target / "scheduler")


def check_teacher(folder: Path, network: Any, autoencoder: Autoencoder | None) -> None:  # noqa: ANN401
    """Refuse a text-conditional network that takes a guidance scale already, or more than captions and latents."""
    if guidance_input(network) is not None:
        raise UserError(f"{folder} takes a guidance scale already: give the teacher that it was made from")
    channels = network.config["in_channels"]
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
