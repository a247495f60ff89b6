r"""LoRA students: the weights are frozen, and each linear or convolutional layer has a trainable adapter.

    W' = W + B A,    A (rank, inputs), B (outputs, rank), B = 0 at first

(Hu et al. 2021, arXiv 2106.09685), by the library peft; grouped convolutions, which are small, get no adapter. The
frozen W are the teacher's own tensors, held once, and the optimizer holds only the moments of A and B. After training
the product is added to a copy of W: what is saved is a plain network. A and B can be saved, too, under peft's names,
and training can resume from them: then the next teacher is the same W with the A and B of the previous stage.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.random import seeded


def add_lora(network: nn.Module, rank: int, seed: int) -> nn.Module:
    """A copy of the network with trainable LoRA adapters of a given rank, A initialized with the seed.

    The network itself is only frozen, and shares its weights.
    """
    peft = require_peft()
    network.requires_grad_(False)
    student = copy.deepcopy(network, {id(shared): shared for shared in network.parameters()})
    layers = {name: module for name, module in student.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names = [name for name, layer in layers.items() if getattr(layer, "groups", 1) == 1]
    with seeded(seed):
        return peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), student)


def with_adapter(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A frozen network that shares another's weights, with the A and B of `adapter_weights`."""
    rank = next(len(tensor) for name, tensor in weights.items() if "lora_A" in name)
    adapted = add_lora(network, rank, 0)
    load_adapter(adapted, weights)
    return adapted.requires_grad_(False).eval()


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer by their names in peft, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""
    weights = require_peft().get_peft_model_state_dict(network)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def load_adapter(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the A and B of `adapter_weights` into a network with adapters of the same layers and rank."""
    shapes, expected = (
        {name: tensor.shape for name, tensor in adapter.items()} for adapter in (weights, adapter_weights(network))
    )
    if odd := sorted(name for name, _ in shapes.items() ^ expected.items()):
        raise UserError(f"the LoRA weights belong to another network or another rank ({odd[0]}): train them again")
    require_peft().set_peft_model_state_dict(network, dict(weights))


def require_peft() -> Any:  # noqa: ANN401  (a module)
    """Import peft. Raise a UserError where the extra `lora` is missing."""
    return import_extra("peft", "lora", "a LoRA student")


def merge_lora(network: nn.Module) -> nn.Module:
    """A plain copy of a LoRA student, with its adapters merged into the weights."""
    from peft.tuners.lora import LoraLayer

    network = copy.deepcopy(network)
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        network.set_submodule(name, cast(nn.Module, layer.get_base_layer()))
    return network.requires_grad_(True)
