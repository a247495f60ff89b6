"""How the commands run a recipe: completely, or only its estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progdist._utils.errors import UserError
from progdist.cli.terminal import RANK, console, print_table, suggest
from progdist.recipes.begun import check_begun

if TYPE_CHECKING:  # slow imports
    from progdist.evaluation.record import EvaluationRecord
    from progdist.recipes.recipe import Recipe
    from progdist.teachers.open import Teacher


@dataclass(frozen=True)
class Way:
    """The options of a command that runs a recipe."""

    fresh: bool  # start over
    shard: bool  # the network in training is spread over the processes
    dry: bool  # only prepare and estimate it
    device_memory: float | None  # GiB of the device that it is estimated for; None for this device

    def __post_init__(self) -> None:
        if self.device_memory is not None and not self.dry:
            raise UserError("--device-memory requires --dry-run")

    def check_begun(self, content: Mapping[Any, Any], folder: Path) -> None:
        """Refuse the folder of another recipe's run, as far as the stated content shows it."""
        if not self.fresh:
            check_begun(content, folder)

    def carry_out(self, recipe: "Recipe", folder: Path, teacher: "Teacher | None" = None) -> None:
        """Run the recipe, with progress in the terminal and on its page, or only estimate it.

        `teacher` is the recipe's teacher if it is already open.
        """
        from progdist.cli.progress import Terminal, estimate_table
        from progdist.runs.run import open_run

        how = {"shards": self.shard, "fresh": self.fresh, "dry": self.dry}
        run = open_run(recipe, folder, Terminal(console), teacher=teacher, **how)
        if not self.dry:
            _print(folder, run.live().run(), run.recipe.data.against)
            return
        from progdist.runs.estimate.cost import estimate

        run.prepare()
        capacity = None if self.device_memory is None else int(self.device_memory * 2**30)
        text, table = estimate_table(recipe.name, estimate(run, capacity))
        console.print(text)
        print_table(table)

    def suggest(self, recipe: "Recipe", folder: Path) -> None:
        """Suggest the command that comes next."""
        from progdist.recipes.recipe import student_name

        student = folder / student_name(recipe.distill.counts()[-1])
        done = f"progdist play {folder}, or progdist sample {student}"
        suggest("the same command without --dry-run" if self.dry else done)


def _print(folder: Path, records: "Sequence[EvaluationRecord]", against: str) -> None:
    """Print the table of a run and the path of its report, in the first process."""
    from progdist.cli.progress import quality_table
    from progdist.runs.folder import RunFolder

    if RANK > 0:
        return
    warning = records[0].quality[0].warning
    console.print()
    print_table(quality_table(records, against))
    if warning:
        console.print(f"Warning: {warning}")
    console.print(f"Report: {RunFolder(folder).report()}")
