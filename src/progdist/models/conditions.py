"""Captions as conditions: what the network is given of the caption of each example.

A caption is a number, its place among the distinct captions, as a label is; its embeddings are a row of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from progdist.data.latents import split_label
from progdist.models.model import Model

Rows = Callable[[Tensor], Mapping[str, Tensor]]
"""Captions' numbers (B,) on the CPU -> their embeddings by name, (B, ...) on the CPU, of any precision."""


@dataclass(frozen=True)
class CaptionConditions:
    """The condition of a batch: embeddings of its captions, and what is the same for all of its examples.

    Args:
        rows: finds the embeddings.
        constants: (1, ...) each.
    """

    rows: Rows
    constants: Mapping[str, Tensor]

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name, for a batch that holds `labels` (B,), the captions' numbers, and may hold `guidance` (B,)."""
        labels = batch["labels"]
        found = {name: rows.to(labels.device, torch.float32) for name, rows in self.rows(labels.cpu()).items()}
        fixed = {
            name: row.to(labels.device).expand(len(labels), *row.shape[1:]) for name, row in self.constants.items()
        }
        return fixed | found | {name: batch[name] for name in ("guidance",) if name in batch}

    def at(self, guidance: float | None) -> "CaptionConditions":
        """The same with one guidance scale for all; itself for None."""
        if guidance is None:
            return self
        scale = torch.tensor([guidance], dtype=torch.float64)
        return replace(self, constants={**self.constants, "guidance": scale})


@dataclass(frozen=True)
class SizeConditions:
    """The condition of a batch of examples whose images differ in size and crop, of a network that is told of both.

    time_ids is (height, width, top, left, new height, new width) of each example, as SDXL was trained (Podell et al.
    2023, arXiv 2307.01952, section 2.2); of a caption without an example, as in sampling, what the stock pipeline says.

    Args:
        conditions: of captions, with time_ids for all among the constants.
        captions: how many there are.
        frames: the first four numbers, int64 (4,), by the example's number.
    """

    conditions: CaptionConditions
    captions: int
    frames: Callable[[int], Tensor]

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name, for a batch that holds `labels` (B,) as `progdist.data.latents` makes them."""
        captions, examples = split_label(batch["labels"], self.captions)
        found, stock = self.conditions({**batch, "labels": captions}), self.conditions.constants["time_ids"][0]
        frames = torch.stack([self.frames(n) if n >= 0 else stock[:4].long() for n in examples.tolist()])
        known = found["time_ids"]
        return {**found, "time_ids": torch.cat([frames.to(known), known[:, 4:]], dim=1)}


def prompt_conditions(model: Model, prompts: Sequence[str], guidance: float | None) -> CaptionConditions:
    """The conditions of a text-conditional model for a few prompts, whose numbers are their places among them.

    Args:
        model: of captions.
        prompts: each distinct one is encoded once, on the model's device.
        guidance: the scale; None for the stock pipeline's usual one, or where the model takes none.

    Raises:
        UserError: a guidance is given to a model that takes none, or as in `TextPipeline.encoder`.
    """
    assert model.text is not None
    encoder = model.text.encoder(next(model.denoiser.parameters()).device)
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    table, places = encoder(list(distinct)), torch.tensor([distinct[prompt] for prompt in prompts])
    conditions = CaptionConditions(
        lambda numbers: {name: rows[places[numbers]] for name, rows in table.items()}, model.text.constants(model.image)
    )
    return conditions.at(model.scale(guidance))
