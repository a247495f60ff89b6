"""The variants of the digits chain that `cheaper_distillation.py` compares."""

from dataclasses import dataclass, replace

from progdist.methods.chain import Stage, stages


@dataclass(frozen=True)
class Variant:
    """A chain and its training.

    Args:
        updates: of each student, by its step count, largest first; the chain is 256 and these.
        rates: the highest learning rate of each.
        batch: of each.
        uses: how often a target is trained on, in another order each time.
        carry: go on with the optimizer moments of the stage before.
        ema: decay of the average that teaches the next stage; 0 for the student itself.
        antithetic: the second half of a batch is the first with the negative noise.
        by_loss: draw the time index in proportion to the root of its mean loss, with weights that undo it.
    """

    updates: tuple[tuple[int, int], ...] = ((16, 20), (4, 170), (2, 150), (1, 210))
    rates: tuple[float, ...] = (2e-4, 6e-4, 8e-4, 1e-3)
    batch: tuple[int, ...] = (64, 64, 64, 64)
    uses: int = 1
    carry: bool = False
    ema: float = 0.0
    antithetic: bool = False
    by_loss: bool = False

    def stages(self) -> list[Stage]:
        """The links of the chain."""
        return stages([256, *(steps for steps, _ in self.updates)])

    def cost(self) -> float:
        """Evaluations of one example."""
        parts = zip(self.stages(), self.updates, self.batch, strict=True)
        return sum(count * size * (stage.substeps / self.uses + 3) for stage, (_, count), size in parts)

    def scaled(self, share: float, teacher: float) -> "Variant":
        """The same with fewer or more updates, so that it costs this share of the teacher's training."""
        part = share * teacher / self.cost()
        return replace(
            self, updates=tuple((steps, max(self.uses, round(part * count))) for steps, count in self.updates)
        )


TEACHER_COST = 700 * 128 * 3
RECIPE = Variant()
ALL_THREE = replace(RECIPE, batch=(32,) * 4, carry=True, uses=2)
VARIANTS = {
    "recipe": RECIPE,
    **{
        name: variant.scaled(0.25, TEACHER_COST)
        for name, variant in {
            "quarter": RECIPE,
            "rates x 2": replace(RECIPE, rates=(4e-4, 1.2e-3, 1.6e-3, 2e-3)),
            "rates x 0.5": replace(RECIPE, rates=(1e-4, 3e-4, 4e-4, 5e-4)),
            "256-8-4-2-1": replace(
                RECIPE, updates=((8, 20), (4, 120), (2, 150), (1, 210)), rates=(2e-4, 6e-4, 8e-4, 1e-3)
            ),
            "256-16-8-4-2-1": replace(
                RECIPE,
                updates=((16, 20), (8, 60), (4, 120), (2, 150), (1, 210)),
                rates=(2e-4, 4e-4, 6e-4, 8e-4, 1e-3),
                batch=(64,) * 5,
            ),
            "256-4-2-1": replace(
                RECIPE, updates=((4, 40), (2, 150), (1, 210)), rates=RECIPE.rates[1:], batch=(64,) * 3
            ),
            "256-16-4-1": replace(
                RECIPE, updates=((16, 20), (4, 170), (1, 210)), rates=(2e-4, 6e-4, 1e-3), batch=(64,) * 3
            ),
            "moments carried": replace(RECIPE, carry=True),
            "targets used twice": replace(RECIPE, uses=2),
            "targets used 3 times": replace(RECIPE, uses=3),
            "average 0.9 teaches": replace(RECIPE, ema=0.9),
            "antithetic noise": replace(RECIPE, antithetic=True),
            "time by loss": replace(RECIPE, by_loss=True),
            "batch 32": replace(RECIPE, batch=(32,) * 4),
            "batch 128 at the end": replace(RECIPE, batch=(64, 64, 128, 128)),
            "moments carried, rates x 2": replace(RECIPE, carry=True, rates=(4e-4, 1.2e-3, 1.6e-3, 2e-3)),
            "batch 32, moments carried, targets used twice": ALL_THREE,
        }.items()
    },
    **{
        f"half: {name}": variant.scaled(0.5, TEACHER_COST)
        for name, variant in {
            "as the recipe": RECIPE,
            "batch 32": replace(RECIPE, batch=(32,) * 4),
            "targets used twice": replace(RECIPE, uses=2),
            "batch 32, moments carried, targets used twice": ALL_THREE,
        }.items()
    },
    "batch 32, moments carried, targets used twice, at the recipe's cost": ALL_THREE.scaled(0.8, TEACHER_COST),
}
