"""What a network of anyone's is told where its samples are measured: the conditions of the data's own examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.data.examples import ExampleData
from progdist.models.conditioning import Conditioning, Conditions, Shape


@dataclass(frozen=True)
class ExampleConditioning(Conditioning):
    """Of a network whose samples are made under the conditions of examples, which say their shape, too."""

    examples: ExampleData = field(kw_only=True)

    def shape(self, network: nn.Module) -> Shape | None:
        """That of an example; a UserError for one that is no image."""
        if len(self.examples.shape) != 3:
            raise UserError(f"an example is {self.examples.shape}, expected an image (channels, height, width)")
        channels, height, width = self.examples.shape
        return channels, height, width

    def drawn(self, count: int, prompts: Sequence[str] = (), shares: Sequence[int] = ()) -> Tensor:
        """The numbers of examples (count,), in a mixed order, all of them in turn."""
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
    scale: float | None = None  # of guidance, where the network takes one

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name, for the numbers of examples in `labels` (B,), on their device."""
        numbers = batch["labels"]
        rows = self.examples.rows(numbers.tolist())
        told = {name: values.to(numbers.device) for name, values in rows.items() if name != "x"}
        if self.scale is not None:
            told["guidance"] = torch.full((len(numbers),), self.scale, dtype=torch.float64)
        return told

    def at(self, scale: float | None) -> "_OfExamples":
        """The same at another guidance scale; itself for None."""
        return self if scale is None else _OfExamples(self.examples, scale)
