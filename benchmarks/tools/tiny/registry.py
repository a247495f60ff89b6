"""The pipelines that can be built, and how each is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from support.text import PROMPTS
from support.text_transformers import drawn_anew

Maker = Callable[[Sequence[str]], dict[str, Any]]
"""From prompts to the components of a pipeline."""

Writer = Callable[..., Any]
"""(folder, prompts=PROMPTS): writes a pipeline."""

BUILDERS: dict[str, Writer] = {}
"""What writes a complete folder, by the class of the pipeline; "Class/variant" for a further one of the same class."""

CALLS: dict[str, dict[str, Any]] = {}
"""The arguments of a small call, without prompt and steps, by the same names."""


def written(name: str, writer: Writer, **call: Any) -> None:  # noqa: ANN401
    """Enter a pipeline by what writes it and the arguments of a small call."""
    BUILDERS[name], CALLS[name] = writer, call


def louder(network: nn.Module, gain: float) -> nn.Module:
    """A network whose matrices and kernels are larger by a factor, so that gates and prompts count for more."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(gain)
    return network


def settled(network: nn.Module) -> nn.Module:
    """A network of which no parameter is zero or unset, for evaluation."""
    for name, parameter in network.named_parameters():
        if name.endswith(UNSET):
            parameter.data.zero_()
    return drawn_anew(network).eval()


UNSET = ("pad_token",)
"""Parameters that diffusers leaves as they are found in memory."""


def pipeline(name: str, *, gain: float = 1.0, **call: Any) -> Callable[[Maker], Maker]:  # noqa: ANN401
    """Enter a pipeline by the function that makes its components and the arguments of a small call.

    Layers that begin at zero are drawn anew; `gain` multiplies the weights of its `transformer` or `unet`.
    """

    def entered(maker: Maker) -> Maker:
        def write(folder: Path, prompts: Sequence[str] = PROMPTS) -> None:
            components = maker(prompts)
            for part, module in components.items():
                if isinstance(module, nn.Module):
                    louder(settled(module), gain if part in ("transformer", "unet") else 1.0)
            getattr(diffusers, name.split("/")[0])(**components).save_pretrained(folder)

        written(name, write, **call)
        return maker

    return entered


def build(name: str, folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    """Write the tiny pipeline of a name (seed 0), whose tokenizers know the letters of some prompts; gives the folder.

    The caller's random numbers stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BUILDERS[name](folder, prompts)
    return folder
