r"""Convert the parameters of a released network to those of diffusers' UNet2DModel.

Their network receives 1000 t', ours T t - 1 with T = 1000. With tau = 1000 t - 1 their embedding of tau + 1 is a
rotation of ours, for every frequency w,

    sin w(tau + 1) =  cos w sin(w tau) + sin w cos(w tau)
    cos w(tau + 1) = -sin w sin(w tau) + cos w cos(w tau)

so the rotation is folded, in float64, into the first layer of the time embedding. One-hot classes through a dense layer
with a bias become an embedding with the bias added to every row.

Source: github.com/google-research/google-research, diffusion_distillation.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.models.unet import unet

PLACE = re.compile(
    r"(?P<way>down|up)_(?P<level>\d+)\.(?:(?P<part>block|attn)_(?P<index>\d+)|(?:down|up)sample)"
    r"|mid\.(?P<mid_part>block|attn)_(?P<mid_index>\d+)"
)


def infer_network(parameters: Mapping[str, Tensor], size: int) -> UNet2DModel:
    """Infer the network of these parameters, for images of size x size, without loading them.

    Raises:
        UserError: they belong to another network.
    """
    try:
        levels = 1 + max(int(match[1]) for name in parameters if (match := re.match(r"down_(\d+)\.", name)))
        blocks = sum(bool(re.fullmatch(r"down_0\.block_\d+/conv1/kernel", name)) for name in parameters)
        _, _, channels, width = parameters["conv_in/kernel"].shape
        widths = [parameters[f"down_{level}.block_0/conv1/kernel"].shape[-1] for level in range(levels)]
        queries = [parameters[name].shape for name in parameters if name.endswith("/q/kernel")]
        sizes, counts = {shape[2] for shape in queries}, {shape[1] for shape in queries}
        classes = parameters["class_emb/kernel"].shape[0] if "class_emb/kernel" in parameters else 0
        heads, rest = divmod(parameters["conv_out/kernel"].shape[-1], channels)
        embedding = parameters["dense0/kernel"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"the parameters belong to another network: {error} is missing or has another shape") from error
    if any(count % width for count in widths) or rest or heads not in (1, 2) or (len(sizes) > 1 and counts != {1}):
        raise UserError(
            f"the parameters belong to another network: level widths {widths} on {width}, {heads} outputs of "
            f"{channels} channels, attention heads of sizes {sorted(sizes)}"
        )
    attends = [f"down_{level}.attn_0/q/kernel" in parameters for level in range(levels)]
    build = partial(
        unet,
        image=(channels, size, size),
        width=width,
        multipliers=[count // width for count in widths],
        blocks=blocks,
        attention=[size >> level for level in range(levels) if attends[level]],
        head_size=sizes.pop() if len(sizes) == 1 else None,
        embedding=embedding,
        classes=classes,
        heads=heads,
    )
    _check_size(build, sum(tensor.numel() for tensor in parameters.values()))
    return build()


def _check_size(build: Callable[[], UNet2DModel], held: int) -> None:
    """Refuse, before it is built, a network with another number of parameters than the file."""
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build().parameters())
    except (ValueError, TypeError, RuntimeError, ArithmeticError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the parameters belong to another network ({reason}): fetch the checkpoint again") from error
    if not held / 2 <= count <= 2 * held:  # a bias of classes is added to their embeddings
        raise UserError(f"the parameters belong to another network: it would have {count:,}, but the file has {held:,}")


def translate(parameters: Mapping[str, Tensor], network: UNet2DModel) -> dict[str, Tensor]:
    """The state of a UNet2DModel, in float32. Raise a UserError for extra or missing parameters, or other sizes."""
    levels = len(network.config["block_out_channels"])
    state: dict[str, Tensor] = {}
    for path, value in parameters.items():
        if path != "class_emb/bias":
            state[_rename(path, levels)] = _reorder(path, value.double())
    if "class_emb/bias" in parameters:
        state["class_embedding.weight"] = state["class_embedding.weight"] + parameters["class_emb/bias"].double()
    state["time_embedding.linear_1.weight"] = _turn(state["time_embedding.linear_1.weight"])
    expected = network.state_dict()
    if expected.keys() != state.keys():
        odd = sorted(expected.keys() ^ state.keys())
        raise UserError(f"the parameters belong to another network: {len(odd)} differ, the first is {odd[0]}")
    for name, value in state.items():
        if value.numel() != expected[name].numel():
            raise UserError(
                f"the parameters belong to another network: {name} is {tuple(value.shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )
    return {name: value.reshape(expected[name].shape).float() for name, value in state.items()}


def _turn(weight: Tensor) -> Tensor:
    """Fold the step from tau to tau + 1 into the layer after the embedding (out, [sin, cos])."""
    sine, cosine = weight.chunk(2, dim=1)
    half = sine.shape[1]
    w = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / (half - 1))
    return torch.cat([sine * w.cos() - cosine * w.sin(), sine * w.sin() + cosine * w.cos()], dim=1)


TOP = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "dense0": "time_embedding.linear_1",
    "dense1": "time_embedding.linear_2",
    "class_emb": "class_embedding",
}
INNER = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
}


def _rename(path: str, levels: int) -> str:
    *parts, leaf = path.split("/")
    leaf_name = "bias" if leaf == "bias" else "weight"
    if len(parts) == 1 and parts[0] in TOP:
        return f"{TOP[parts[0]]}.{leaf_name}"
    match = PLACE.fullmatch(parts[0])
    if match is None or len(parts) != 2:
        raise UserError(f"the parameters belong to another network: {path} is not one of its names")
    modules = {"block": "resnets", "attn": "attentions"}
    if match["mid_part"]:
        module_path = f"mid_block.{modules[match['mid_part']]}.{int(match['mid_index']) - 1}"
    else:
        way, level = match["way"], int(match["level"])
        module_path = f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"
        module_path += f".{modules[match['part']]}.{match['index']}" if match["part"] else f".{way}samplers.0"
    return f"{module_path}.{INNER.get(parts[1], parts[1])}.{leaf_name}"


def _reorder(path: str, value: Tensor) -> Tensor:
    """Convert the order of axes to torch's: HWIO -> OIHW, (in, out) -> (out, in), heads side by side."""
    *_, layer, leaf = path.split("/")
    if leaf != "kernel" or layer == "class_emb":
        return value.flatten() if leaf != "kernel" else value
    if layer in ("q", "k", "v"):
        return value.flatten(1).T
    if layer == "proj_out" and value.ndim == 3:
        return value.flatten(0, 1).T
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.mT if value.ndim == 2 else value
