"""Conditions for measuring your own network: those of the data's examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.data.examples import ExampleData
from progdist.models.conditioning import Conditioning, Conditions, Shape


@dataclass(frozen=True)
class ExampleConditioning(Conditioning):
    """The conditioning of a network sampled under the conditions of examples, which also give its shape."""

    examples: ExampleData = field(kw_only=True)

    def shape(self, network: nn.Module) -> Shape | None:
        """The shape of an example. Raise a UserError if it is not an image."""
        if len(self.examples.shape) != 3:
            raise UserError(f"an example is {self.examples.shape}, expected an image (channels, height, width)")
        channels, height, width = self.examples.shape
        return channels, height, width

    def drawn(self, count: int, prompts: Sequence[str] = (), shares: Sequence[int] = ()) -> Tensor:
        """Example numbers (count,), shuffled, all of them in turn."""
        order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(0))
        return order[torch.arange(count) % len(order)]

    def conditions(
        self, network: nn.Module, scale: float | None, prompts: Sequence[str] = (), image: Shape | None = None
    ) -> Conditions:
        """The examples' conditions."""
        return _OfExamples(self.examples, scale)


@dataclass(frozen=True)
class _OfExamples:
    examples: ExampleData
    scale: float | None = None  # of guidance, if the network takes one

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition by name, for the example numbers in `labels` (B,), on their device."""
        numbers = batch["labels"]
        rows = self.examples.rows(numbers.tolist())
        told = {name: values.to(numbers.device) for name, values in rows.items() if name != "x"}
        if self.scale is not None:
            told["guidance"] = torch.full((len(numbers),), self.scale, dtype=torch.float64)
        return told

    def at(self, scale: float | None) -> "_OfExamples":
        """The same at another guidance scale; unchanged for None."""
        return self if scale is None else _OfExamples(self.examples, scale)
