"""The layouts of appendix E are inferred from names and shapes."""

from typing import Any

import pytest
import torch

from progdist.teachers.jax_parameters import infer_network, translate

LAYOUTS = {  # appendix E at reduced width: channels, multipliers, attention, head size, embedding, classes, heads
    "cifar10": (32, (1, 1, 1), (8, 16), None, 64, 0, 1, 32),
    "imagenet64": (32, (1, 2, 3, 4), (8, 16, 32), 16, 96, 10, 2, 64),
    "lsun-bedroom128": (32, (1, 2, 4, 6, 8), (8, 16, 32), 32, 96, 0, 2, 128),
    "lsun-church128": (64, (1, 2, 4, 6, 8), (8, 16, 32), 64, 96, 0, 2, 128),
}


def released(network: Any, head_size: int | None) -> dict[str, torch.Tensor]:  # noqa: ANN401  (a UNet2DModel)
    """Parameters of a network under their names and in their order of axes, written out layer by layer."""
    levels = len(network.config["block_out_channels"])
    parameters: dict[str, torch.Tensor] = {}

    def put(prefix: str, module: Any, names: dict[str, str]) -> None:  # noqa: ANN401
        for theirs, ours in names.items():
            layer = module.get_submodule(ours) if hasattr(module, ours.split(".")[0]) else None
            if layer is None:
                continue
            weight, bias = layer.weight, layer.bias
            if theirs.startswith("norm"):
                parameters[f"{prefix}/{theirs}/scale"] = weight
            elif theirs in ("q", "k", "v"):
                size = head_size or weight.shape[0]
                parameters[f"{prefix}/{theirs}/kernel"] = weight.T.reshape(weight.shape[1], -1, size)
                bias = bias.reshape(-1, size)
            elif theirs == "proj_out":
                size = head_size or weight.shape[0]
                parameters[f"{prefix}/{theirs}/kernel"] = weight.T.reshape(-1, size, weight.shape[0])
            elif theirs == "nin_shortcut":
                parameters[f"{prefix}/{theirs}/kernel"] = weight[:, :, 0, 0].T
            else:
                parameters[f"{prefix}/{theirs}/kernel"] = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            parameters[f"{prefix}/{theirs}/bias"] = bias

    block = {"conv1": "conv1", "conv2": "conv2", "norm1": "norm1", "norm2": "norm2", "temb_proj": "time_emb_proj"}
    shortcut = {"nin_shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

    def put_block(prefix: str, module: Any) -> None:  # noqa: ANN401
        put(prefix, module, block | (shortcut if module.conv_shortcut is not None else {}))

    for way, rooms in (("down", network.down_blocks), ("up", network.up_blocks)):
        for number, room in enumerate(rooms):
            level = number if way == "down" else levels - 1 - number
            for index, module in enumerate(room.resnets):
                put_block(f"{way}_{level}.block_{index}", module)
            for index, module in enumerate(getattr(room, "attentions", [])):
                put(f"{way}_{level}.attn_{index}", module, attention)
            for module in getattr(room, f"{way}samplers", None) or []:
                put_block(f"{way}_{level}.{way}sample", module)
    middle: Any = network.mid_block
    put_block("mid.block_1", middle.resnets[0])
    put("mid.attn_1", middle.attentions[0], attention)
    put_block("mid.block_2", middle.resnets[1])
    top: Any = {"conv_in": network.conv_in, "conv_out": network.conv_out}
    for prefix, module in top.items():
        parameters[f"{prefix}/kernel"], parameters[f"{prefix}/bias"] = module.weight.permute(2, 3, 1, 0), module.bias
    parameters["norm_out/scale"] = network.conv_norm_out.weight
    parameters["norm_out/bias"] = network.conv_norm_out.bias
    embedding: Any = network.time_embedding
    for prefix, module in (("dense0", embedding.linear_1), ("dense1", embedding.linear_2)):
        parameters[f"{prefix}/kernel"], parameters[f"{prefix}/bias"] = module.weight.T, module.bias
    if network.class_embedding is not None:
        weight = network.class_embedding.weight
        parameters["class_emb/kernel"], parameters["class_emb/bias"] = weight - 0.5, torch.full_like(weight[0], 0.5)
    return {path: value.detach().contiguous() for path, value in parameters.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("lsun") else name for name in LAYOUTS]
)
def test_appendix_e_is_inferred_from_names_and_shapes(name: str) -> None:
    """The layout comes back, and the network then computes what the first one does one timestep earlier."""
    from progdist.models.unet import unet

    width, multipliers, attention, head_size, embedding, classes, heads, size = LAYOUTS[name]
    numbers: dict[str, Any] = {
        "width": width, "multipliers": multipliers, "attention": attention, "head_size": head_size,
        "embedding": embedding, "classes": classes, "heads": heads,
    }  # fmt: skip
    network = unet(image=(3, size, size), **numbers, blocks=3 if size == 32 else 1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    parameters = released(network, head_size)
    same = {"attention_head_dim": None}  # one head of 32 channels can be written in two ways
    other = infer_network(parameters, size)
    assert {**other.config, **same} == {**network.config, **same}
    other.load_state_dict(translate(parameters, other))
    z, timestep = torch.randn(1, 3, size, size), torch.tensor([417.3])
    condition = {"class_labels": torch.tensor([3])} if classes else {}
    with torch.no_grad():
        first = network(z, timestep, **condition).sample
        second = other(z, timestep - 1, **condition).sample
    torch.testing.assert_close(second, first, rtol=0, atol=2e-4)
