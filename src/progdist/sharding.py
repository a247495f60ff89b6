"""A network spread over the processes of a run, for those that do not fit one device (torch's FSDP2, `fully_shard`).

Each process holds an n-th of every weight, gradient and moment, and gathers a block's weights when it is that block's
turn. Gradients are averaged as they are scattered. What is written is whole, so a run can go on without sharding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself, its weights now spread over all processes, block by block."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for blocks in reversed(lists):  # the innermost first
        for block in blocks:
            if any(parameter.requires_grad for parameter in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each gathered on the CPU; all processes must ask."""
    return {
        name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()
    }


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor spread as another one is; itself where that is not spread, or of another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
