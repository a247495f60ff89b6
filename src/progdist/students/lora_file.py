r"""A student as LoRA weights for the stock pipeline that it was distilled from.

    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    pipeline.load_lora_weights(FOLDER)

The pipeline keeps its own scheduler's table and output, so a student of this kind has them, too: eps stays eps, and the
last noise level stays above zero SNR. The way from eps to v depends on z and t,

    v = (eps - sigma z) / alpha

and is no correction of low rank to the weights. All stages train one set of adapters, begun from the stage before, so
that the last student is the base and one file, not a file for each stage. The layers are named as peft names them,
which stock pipelines load whole; after the way through the names of other libraries some find no layer, in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from torch import Tensor

from progdist._utils.files import read_tensors

LOADERS: dict[str, Any] = {
    "StableDiffusionPipeline": StableDiffusionLoraLoaderMixin,
    "StableDiffusionXLPipeline": StableDiffusionXLLoraLoaderMixin,
}
"""What loads and saves the LoRA weights of each stock pipeline."""

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""How diffusers names the file."""

PREFIX = "unet."
"""Before the names of the network's layers in the file."""


@dataclass(frozen=True)
class LoraFile:
    """The LoRA weights of a student.

    Attributes:
        base: the pipeline that they are for, as it was named: a folder, or hub:OWNER/NAME.
        weights: A and B of every adapted layer, as `progdist.training.lora.adapter_weights` names them; none before
            the first training.
    """

    base: str
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Of the adapters, the rows of any A."""
        return next(len(tensor) for name, tensor in self.weights.items() if "lora_A" in name)

    def write(self, kind: str, folder: Path) -> None:
        """Write the file as the stock pipeline of class `kind` does.

        Raises:
            OSError: it cannot be written.
        """
        LOADERS[kind].save_lora_weights(folder, unet_lora_layers=dict(self.weights))


def read_lora(folder: Path, metadata: Any) -> LoraFile | None:  # noqa: ANN401  (whatever JSON can hold)
    """The LoRA weights in a model folder; None where there are none.

    Args:
        folder: of the model.
        metadata: what its progdist.json says of them.

    Raises:
        UserError: the file is missing or damaged.
        KeyError, TypeError: the description is damaged.
    """
    if metadata is None:
        return None
    weights = read_tensors(folder / LORA_WEIGHTS)
    return LoraFile(str(metadata["base"]), {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
