r"""Class-conditional networks that take a guidance scale: a term beside the embedding of the class.

    e(c, g) = e(c) + W (gamma(g - 1) - gamma(g_0 - 1)),    W = 0 at first

e(c) is the network's own embedding of the class, which it adds to that of the time, and gamma the sinusoidal embedding
that stock text-to-image pipelines give a guidance scale (Meng et al. 2023, arXiv 2210.03142, section 3.1). A constant
beside e(c) is the same function: it is chosen so that nothing is added at g_0, the usual scale. At g_0 the network is
thus the stock network of the same weights, and with W = 0 it is so at every g.

A UNet2DModel has one such W; a DiTTransformer2DModel has one in each block, which embeds the class by itself.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors.torch
import torch
from diffusers.models.embeddings import LabelEmbedding, get_timestep_embedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_tensors

DIM = 256
"""Numbers in the embedding of a guidance scale."""

USUAL = 4.0
"""DiTPipeline's guidance scale if none is said."""

FILE = Path("guidance") / "model.safetensors"
"""Where a model's folder holds the weights W."""

Network = TypeVar("Network", bound=nn.Module)


class GuidedClasses(nn.Module):
    """Embeds a class and a guidance scale.

    Args:
        classes: embeds classes (B,) as (B, width).
        width: of its embeddings.
        scales: the least and the largest guidance scale that the network knows.
    """

    def __init__(self, classes: nn.Module, width: int, scales: tuple[float, float]) -> None:
        super().__init__()
        self.classes, self.scales = classes, scales
        self.usual = usual_scale(scales)
        self.guidance = nn.Linear(DIM, width, bias=False)
        nn.init.zeros_(self.guidance.weight)

    def forward(self, given: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """e(c, g) of labels and scales, (B,) each; of labels alone that at the usual scale, e(c)."""
        if isinstance(given, Tensor):
            return self.classes(given)
        labels, guidance = given
        scales = guidance.to(labels.device, torch.float32)
        difference = guidance_embedding(scales) - guidance_embedding(torch.full_like(scales, self.usual))
        return self.classes(labels) + self.guidance(difference)


def guidance_embedding(guidance: Tensor) -> Tensor:
    """gamma(g - 1) of scales g (B,), float32 (B, DIM): sines, then cosines."""
    return get_timestep_embedding(1000 * (guidance - 1), DIM, downscale_freq_shift=1)


def class_guidance(network: nn.Module) -> GuidedClasses | None:
    """What embeds the guidance scale of a class-conditional network, the first of several; None where it takes none."""
    return next((each for each in network.modules() if isinstance(each, GuidedClasses)), None)


def usual_scale(scales: tuple[float, float]) -> float:
    """g_0 of a network that knows the scales from the least to the largest: USUAL, or the nearest of them."""
    return min(max(USUAL, scales[0]), scales[1])


def with_class_guidance(network: Network, scales: tuple[float, float]) -> Network:
    """A network that takes a guidance scale, too, and does what it did before whatever the scale.

    Args:
        network: class-conditional, without that input; left as it is, its weights are shared.
        scales: the least and the largest that it is to know.

    Raises:
        UserError: it is another network, or embeds its classes in another way than by a table.
    """
    student = _shared(network)
    for parent, name in _class_embeddings(student):
        classes = getattr(parent, name)
        table = classes.embedding_table if isinstance(classes, LabelEmbedding) else classes
        if not isinstance(table, nn.Embedding):
            kind = f"{type(network).__name__} with a {type(table).__name__} of classes"
            raise UserError(f"a range of guidance needs a table of classes, got {kind}: give a single scale")
        added = GuidedClasses(classes, table.embedding_dim, scales)
        setattr(parent, name, added.to(table.weight.device))
    return student


def save_class_guidance(network: Network, folder: Path) -> Network:
    """Write every W to a model's folder, by its place in the network.

    Returns:
        The stock network without them, which is the given one at the usual scale; its weights are shared.
    """
    weights = {
        name: each.guidance.weight.detach().contiguous()
        for name, each in network.named_modules()
        if isinstance(each, GuidedClasses)
    }
    (folder / FILE.parent).mkdir()
    safetensors.torch.save_file(weights, folder / FILE)
    stock = _shared(network)
    for parent, name in _class_embeddings(stock):
        setattr(parent, name, getattr(parent, name).classes)
    return stock


@torch.no_grad()
def load_class_guidance(network: Network, scales: Sequence[float], folder: Path) -> Network:
    """The network that `save_class_guidance` took apart.

    Raises:
        UserError, LookupError, RuntimeError, TypeError, ValueError: the file is damaged, or of another network.
    """
    least, most = map(float, scales)
    if not 0 < least < most < math.inf:
        raise ValueError(f"the guidance is {least:g} to {most:g}")
    student, weights = with_class_guidance(network, (least, most)), read_tensors(folder / FILE)
    places = {name: each for name, each in student.named_modules() if isinstance(each, GuidedClasses)}
    for name in places.keys() | weights.keys():
        places[name].guidance.weight.copy_(weights[name])
    return student.eval()


def class_arguments(class_labels: Tensor, guidance: Tensor | None = None) -> dict[str, Any]:
    """The keyword arguments of a network with a guidance scale, of labels and, if not the usual one, scales (B,)."""
    return {"class_labels": class_labels if guidance is None else (class_labels, guidance)}


def _class_embeddings(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a network embeds its classes: a module, and the name of a child."""
    if isinstance(network, UNet2DModel):
        return [(network, "class_embedding")]
    if isinstance(network, DiTTransformer2DModel):
        return [(cast(Any, block).norm1.emb, "class_embedder") for block in network.transformer_blocks]
    raise UserError(
        f"a range of guidance is for UNet2DModel and DiTTransformer2DModel, not {type(network).__name__}: give a "
        "single scale"
    )


def _shared(network: Network) -> Network:
    """A copy of the modules around the same weights."""
    return deepcopy(network, {id(weight): weight for weight in network.parameters()})
