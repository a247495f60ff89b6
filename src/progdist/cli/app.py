"""The commands that carry out recipes, and the app that holds all commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from progdist import __version__
from progdist._utils.errors import UserError
from progdist.cli import evaluation, models, studies
from progdist.cli.options import (
    DATA_SOURCES,
    CaptionColumn,
    ConversionUpdates,
    DeviceMemory,
    DryRun,
    Fresh,
    Guidance,
    ImageColumn,
    Lora,
    Shard,
)
from progdist.cli.terminal import RANK, Commands, console, user_errors

if TYPE_CHECKING:
    from progdist.recipes.recipe import Recipe

app = typer.Typer(
    name="progdist",
    cls=Commands,
    help="Progressive distillation: diffusion models that sample in 1 to 8 steps.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain text, which fits 80 columns and any pager
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Progressive distillation: diffusion models that sample in 1 to 8 steps."""


@app.command()
@user_errors
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. distill.updates=500.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    fresh: Fresh = False,
    shard: Shard = False,
    dry_run: DryRun = False,
    device_memory: DeviceMemory = None,
) -> None:
    """Train, distil, evaluate and report. The same command again continues."""
    from progdist.cli.progress import Terminal
    from progdist.recipes.files import read_recipe
    from progdist.runs.run import run as run_recipe

    resolved = read_recipe(recipe, set_ or [])
    if _estimated(resolved, dry_run, device_memory):
        return
    folder = out or Path("runs") / resolved.name
    _finish(run_recipe(resolved, folder, Terminal(console), fresh=fresh, shards=shard), folder)


@app.command()
@user_errors
def distill(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a progdist folder, or hub:OWNER/NAME.")],
    data: Annotated[str, typer.Option(help=DATA_SOURCES)],
    steps: Annotated[int, typer.Option(help="Sampling steps of the final student.", min=1)] = 4,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME-STEPS if not given.")] = None,
    start: Annotated[int, typer.Option(help="The chain starts at no more steps than this.", min=2)] = 256,
    updates: Annotated[
        int, typer.Option(help="Training steps of each stage; the last two stages take twice as many.", min=1)
    ] = 1000,
    conversion_updates: ConversionUpdates = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 64,
    guidance: Guidance = None,
    negative: Annotated[str | None, typer.Option(help="A prompt that guidance leads away from, for good.")] = None,
    lora: Lora = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the recipe, as in `run`.")] = None,
    fresh: Fresh = False,
    shard: Shard = False,
    dry_run: DryRun = False,
    device_memory: DeviceMemory = None,
) -> None:
    """Distil a trained model of your own. The same command again continues."""
    from progdist.data.tables import Columns
    from progdist.recipes.files import override
    from progdist.recipes.from_teacher import default_output, recipe_for_teacher
    from progdist.teachers.open import read_teacher

    teacher = read_teacher(model)
    for line in teacher.summary:
        console.print(line, highlight=False)
    folder = out or default_output(model, steps)
    proposed = recipe_for_teacher(
        model,
        teacher,
        data,
        Columns(image_column, caption_column),
        name=folder.name,
        steps=steps,
        start=start,
        updates=updates,
        conversion_updates=conversion_updates,
        batch=batch,
        guidance=_guidance(guidance),
        negative=negative,
        lora=lora,
    )
    recipe = override(proposed, set_ or [])
    if not _estimated(recipe, dry_run, device_memory):
        _distill(recipe, folder, fresh, shard)


def _estimated(recipe: "Recipe", dry_run: bool, device_memory: float | None) -> bool:
    """Print what a recipe would cost, if that is asked; whether it was."""
    if not dry_run:
        if device_memory is not None:
            raise UserError("--device-memory is of --dry-run, which is not given: give it, or leave both")
        return False
    from progdist.cli.progress import estimate_table
    from progdist.runs.estimate.cost import estimate

    capacity = None if device_memory is None else int(device_memory * 2**30)
    for part in estimate_table(recipe.name, estimate(recipe, capacity)):
        console.print(part, highlight=False)
    return True


def _distill(recipe: "Recipe", folder: Path, fresh: bool, shard: bool) -> None:
    """Run a teacher's recipe, and name its chain and its last student."""
    from progdist.cli.progress import Terminal
    from progdist.runs.run import run as run_recipe

    console.print(f"chain: {' -> '.join(map(str, recipe.distill.counts()))}", highlight=False)
    _finish(run_recipe(recipe, folder, Terminal(console), fresh=fresh, shards=shard), folder)
    last = folder / f"student-{recipe.distill.counts()[-1]:04d}"
    console.print(f"The student: {last}", highlight=False, soft_wrap=True)


@app.command()
@user_errors
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write a run's report.html anew."""
    from progdist.runs.folder import RunFolder
    from progdist.runs.pages.report import write_report

    console.print(f"Report: {write_report(RunFolder(folder))}", highlight=False, soft_wrap=True)


@app.command()
@user_errors
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one whole.")] = None) -> None:
    """List the recipes that ship, or print one."""
    from rich.table import Table

    from progdist.recipes.files import read_recipe, shipped

    if name is not None:
        read_recipe(name)
        typer.echo(shipped().get(name) or Path(name).read_text(), nl=False)
        return
    listed = Table.grid(padding=(0, 2))
    for known in shipped():
        listed.add_row(f"[bold]{known}[/bold]", read_recipe(known).about)
    console.print(listed, highlight=False)


def _guidance(text: str | None) -> float | tuple[float, float] | None:
    """A guidance scale, or LO:HI."""
    if text is None:
        return None
    try:
        numbers = [float(number) for number in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(f"--guidance {text} is no scale: give a number, e.g. 3, or a range, e.g. 1:8")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _finish(records: list[dict[str, Any]], folder: Path) -> None:
    """Print the table of a run and the path of its report, in the main process."""
    if RANK > 0:
        return
    from progdist.cli.progress import quality_table
    from progdist.runs.folder import RunFolder
    from progdist.runs.pages.report import quality_rows

    quality = records[0]["quality"][0]
    console.print()
    console.print(quality_table(quality_rows(records), quality["features"], quality["samples"]))
    if quality["warning"]:
        console.print(f"Warning: {quality['warning']}", highlight=False)
    console.print(f"Report: {RunFolder(folder).report()}", highlight=False, soft_wrap=True)


for command in (*models.COMMANDS, *evaluation.COMMANDS, *studies.COMMANDS):
    app.command(command.__name__.replace("_", "-"))(user_errors(command))


def start(arguments: Any = None) -> None:  # noqa: ANN401  (whatever typer takes)
    """The entry point."""
    app(arguments)
