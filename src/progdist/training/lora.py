r"""LoRA students: the weights are frozen, and each linear or convolutional layer has a trainable adapter.

    W' = W + B A,    A (rank, inputs), B (outputs, rank), B = 0 at first

(Hu et al. 2021, arXiv 2106.09685), by the library peft. The frozen W are the teacher's own tensors, held once, and the
optimiser holds the moments of A and B alone. When training ends the product is added to a copy of W: what is saved is a
plain network.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from progdist._utils.errors import UserError


def add_lora(network: nn.Module, rank: int, seed: int) -> nn.Module:
    """A copy of the network with trainable LoRA adapters.

    Args:
        network: left as it is but frozen; its weights are shared.
        rank: of the corrections.
        seed: of A.

    Raises:
        UserError: the extra `lora` is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA students need the extra `lora`: pip install 'progdist[lora]'") from error
    network.requires_grad_(False)
    student = copy.deepcopy(network, {id(shared): shared for shared in network.parameters()})
    names = [name for name, module in student.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    torch.manual_seed(seed)
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), student)


def merge_lora(network: nn.Module) -> nn.Module:
    """A plain copy of a LoRA student, its adapters merged into the weights."""
    network = copy.deepcopy(network)
    for parent, name, layer in list(_adapted(network)):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    return network.requires_grad_(True)


def _adapted(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """(parent, name, layer) of every layer with a correction."""
    from peft.tuners.lora import LoraLayer

    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, LoraLayer):
                yield parent, name, layer
