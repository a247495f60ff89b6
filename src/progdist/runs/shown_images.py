"""The few images of an evaluation that a run's page shows one by one, with captions and at several guidance scales.

They are the first of the run's own noise. At the scale that is measured they are part of the samples already, so a
model that takes the scale as an input is sampled SHOWN times more at each of up to three other scales.
"""

from dataclasses import dataclass

from torch import Tensor

from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.data.grid import write_grid
from progdist.data.images import CaptionedImages, Images
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.evaluation.sampling import noise_in_batches, sample_in_batches
from progdist.models.model import Model
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder
from progdist.runs.stages import RunConditions
from progdist.training.distributed import Distributed

SHOWN = 8
"""Images shown one by one: the first row of a grid."""


def guidance_scales(least: float, most: float, measured: float) -> tuple[float, ...]:
    """The least scale, one a third of the way to two digits, the measured one and the largest; rising.

    Those within a tenth of the measured one, whose images look the same, are left out of a range that has others.
    """
    third = min(max(float(f"{least + (most - least) / 3:.2g}"), least), most)
    apart = {scale for scale in (least, third, most) if abs(scale - measured) > measured / 10}
    return tuple(sorted({measured, *(apart or {least, most})}))


@dataclass(frozen=True)
class ShownImages:
    """The images that are shown one by one, of one run; attributes as of `Evaluator`."""

    recipe: Recipe
    images: Images
    folder: RunFolder
    distributed: Distributed
    conditions: RunConditions

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance scales at which they are shown; empty for a run whose models take none as an input."""
        dial, measured = self.conditions.guidance, self.conditions.evaluated
        return () if dial is None or measured is None else guidance_scales(*dial, measured)

    def description(self) -> Record:
        """What a record tells of them: `captions`, `guidance` (that is measured) and `guidance_grids` (all scales)."""
        captioned, dial = isinstance(self.images, CaptionedImages), self.scales
        names = [self.images.classes[label] for label in self._labels.tolist()] if captioned or dial else []
        told: Record = {"captions": names if captioned else [f"class {name}" for name in names]} if names else {}
        return told | ({"guidance": self.conditions.evaluated, "guidance_grids": list(dial)} if dial else {})

    def write(self, name: str, model: Model, steps: int, method: str, denoiser: DenoiserProtocol | None) -> None:
        """Write a grid of them for every guidance scale but the one that is measured; arguments as of `evaluate`."""
        scales = [scale for scale in self.scales if scale != self.conditions.evaluated]
        if not scales:
            return
        draw, settings = generator(self.recipe.seed, EVALUATION_NOISE), self.recipe.evaluate
        noise = next(noise_in_batches(settings.samples, model.shape, SHOWN, draw))

        def sampled(index: int) -> Tensor:
            conditions = self.conditions(model, scales[index])
            return sample_in_batches(
                model, noise, self._labels, steps, SHOWN,
                precision=settings.precision, clip=settings.clip, method=method, denoiser=denoiser,
                conditions=conditions,
            )  # fmt: skip

        with model.at_work(self.distributed.device, settings.precision):
            images = self.distributed.map_to_main_process(sampled, len(scales))
        for scale, row in zip(scales, images, strict=False):  # there are none but in the first process
            write_grid(row, self.folder.grid(name, steps, scale), SHOWN)

    @property
    def _labels(self) -> Tensor:
        """Their classes, or their captions' numbers: (SHOWN,), or fewer where fewer are sampled."""
        return self.images.stratified_labels(self.recipe.evaluate.samples)[:SHOWN]
