r"""Class-conditional networks with an input for the guidance scale: a term added to the embedding of the class.

    e(c, g) = e(c) + W (gamma(g - 1) - gamma(g_0 - 1)),    W = 0 at first

e(c) is the network's own embedding of the class, added to that of the time, and gamma is the sinusoidal embedding of a
guidance scale in stock text-to-image pipelines (Meng et al. 2023, arXiv 2210.03142, section 3.1),

    gamma(w) = (sin 1000 w f_k, cos 1000 w f_k),    f_k = 10000^(-k / (D/2 - 1)),    k = 0 ... D/2 - 1

A constant added to e(c) does not change what can be learned: it is chosen so that nothing is added at g_0, the default
scale. At g_0 the network thus equals the stock network with the same weights, and with W = 0 at every g.

A UNet2DModel has one such W; a DiTTransformer2DModel has one in each block, each with its own class embedding.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors.torch
import torch
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import check_tensors_finite, read_tensors
from progdist.methods.guidance import Input

EMBEDDING_DIM = 256  # numbers in the embedding of a guidance scale
DEFAULT_SCALE = 4.0  # DiTPipeline's default guidance scale
FILE = Path("guidance") / "model.safetensors"  # the weights W in a model's folder
Network = TypeVar("Network", bound=nn.Module)


class GuidedClasses(nn.Module):
    """Embeds a class by `classes`, (B,) to (B, width), and a scale in the range `guidance`."""

    def __init__(self, classes: nn.Module, width: int, guidance: Input) -> None:
        super().__init__()
        self.classes, self.range = classes, guidance
        self.default_scale = guidance.nearest(DEFAULT_SCALE)
        self.guidance = nn.Linear(EMBEDDING_DIM, width, bias=False)
        nn.init.zeros_(self.guidance.weight)

    def forward(self, condition: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """e(c, g) of labels and scales, (B,) each; for labels alone e(c), the one at the default scale."""
        if isinstance(condition, Tensor):
            return self.classes(condition)
        labels, scales = condition[0], condition[1].to(condition[0].device, torch.float32)
        difference = guidance_embedding(scales) - guidance_embedding(torch.full_like(scales, self.default_scale))
        return self.classes(labels) + self.guidance(difference)


def guidance_embedding(guidance: Tensor, dim: int = EMBEDDING_DIM) -> Tensor:
    """gamma(g - 1) of scales g (B,): (B, dim) in float32, bit for bit that of stock pipelines on a CPU."""
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=guidance.device)
    angles = (1000.0 * (guidance - 1).float())[:, None] * torch.exp(k * -(math.log(10_000.0) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], 1)


def class_guidance(network: nn.Module) -> GuidedClasses | None:
    """The first guidance embedding of a class-conditional network; None if it takes no scale."""
    return next((each for each in network.modules() if isinstance(each, GuidedClasses)), None)


def with_class_guidance(network: Network, guidance: Input) -> Network:
    """Add an input for a range of guidance scales to a network, without changing its output; its weights are shared.

    Raises:
        UserError: the network is of another class, or does not embed its classes by a table.
    """
    student = _shared(network)
    for parent, name in _class_embeddings(student):
        classes = getattr(parent, name)
        table = classes.embedding_table if isinstance(classes, LabelEmbedding) else classes
        if not isinstance(table, nn.Embedding):
            kind = f"{type(network).__name__} with a {type(table).__name__} of classes"
            raise UserError(f"a range of guidance requires a table of classes, got {kind}: give a single scale")
        setattr(parent, name, GuidedClasses(classes, table.embedding_dim, guidance).to(table.weight.device))
    return student


def save_class_guidance(network: Network, folder: Path) -> Network:
    """Write every W to a model's folder, by its place in the network; return the stock network without them."""
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
def load_class_guidance(network: Network, guidance: Input, folder: Path) -> Network:
    """The network that `save_class_guidance` saved; a damaged file raises errors of torch or safetensors."""
    student, weights = with_class_guidance(network, guidance), read_tensors(folder / FILE)
    check_tensors_finite(weights, folder / FILE)
    places = {name: each for name, each in student.named_modules() if isinstance(each, GuidedClasses)}
    for name in places.keys() | weights.keys():
        places[name].guidance.weight.copy_(weights[name])
    return student.eval()


def class_arguments(class_labels: Tensor, guidance: Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments of a network with a guidance input, from labels and, unless at the default, scales (B,)."""
    return {"class_labels": class_labels if guidance is None else (class_labels, guidance)}


def _class_embeddings(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a network embeds its classes: modules, each with the name of its child."""
    if isinstance(network, UNet2DModel):
        return [(network, "class_embedding")]
    if isinstance(network, DiTTransformer2DModel):
        return [(cast(Any, block).norm1.emb, "class_embedder") for block in network.transformer_blocks]
    raise UserError(
        f"a range of guidance requires a UNet2DModel or DiTTransformer2DModel, got a {type(network).__name__}: give a "
        "single scale"
    )


def _shared(network: Network) -> Network:
    """A copy of the modules that shares the same weights."""
    return deepcopy(network, {id(weight): weight for weight in network.parameters()})
