"""The commands that run recipes, and the app with all commands."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from progdist import __version__
from progdist._utils.errors import UserError
from progdist.cli import evaluation, fit, models, options
from progdist.cli.init import init
from progdist.cli.runs import runs
from progdist.cli.terminal import Commands, begin, console, print_table, suggest, user_errors, write_message
from progdist.cli.way import Way
from progdist.recipes.shipped import recipe_text, shipped
from progdist.recipes.stated import default_output, stated, stated_of_teacher
from progdist.training.config import DEFAULTS

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
        console.print(__version__)
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
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. evaluate.samples=500.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder (default: runs/NAME).")] = None,
    seed: options.RunSeed = None,
    fresh: options.Fresh = False,
    shard: options.Shard = False,
    dry_run: options.DryRun = False,
    device_memory: options.DeviceMemory = None,
) -> None:
    """Train, distil, evaluate and report. Run the same command to resume."""
    way, settings = Way(fresh, shard, dry_run, device_memory), options.settings(set_, seed)
    content = stated(recipe, settings)  # mistakes in the files are reported before torch is imported
    folder = out or Path("runs") / str(content.get("name"))
    way.check_begun(content, folder)
    begin(f"estimating {recipe}" if dry_run else f"running {recipe} in {folder}")
    from progdist.recipes.files import read_recipe

    resolved = read_recipe(recipe, settings)
    way.carry_out(resolved, folder)
    way.suggest(resolved, folder)


@app.command()
@user_errors
def distill(
    model: Annotated[str | None, typer.Argument(help=options.MODEL)] = None,
    with_lora: options.WithLora = None,
    config: options.Config = None,
    data: Annotated[str | None, typer.Option(help=options.DATA)] = None,
    prompts: options.PromptsFile = None,
    call: options.Call = None,
    initial: options.Initial = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of the final student (default: 4, or those of --from).", min=1)
    ] = None,
    method: options.DistillationMethod = "progressive",
    out: Annotated[Path | None, typer.Option(help="Output folder (default: runs/NAME-STEPS).")] = None,
    start: Annotated[
        int | None, typer.Option(help="Largest step count at which the chain may start (default: 256).", min=2)
    ] = None,
    updates: options.Updates = DEFAULTS["distill"]["updates"],
    conversion_updates: options.ConversionUpdates = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = DEFAULTS["distill"]["batch"],
    guidance: options.Guidance = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt to distil into the student.")] = None,
    lora: options.Lora = None,
    base_bits: options.BaseBits = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    background: options.Background = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, any key of the recipe.")] = None,
    seed: options.RunSeed = None,
    fresh: options.Fresh = False,
    shard: options.Shard = False,
    dry_run: options.DryRun = False,
    device_memory: options.DeviceMemory = None,
) -> None:
    """Distil a trained model. Run the same command to resume."""
    if data is None and prompts is None:
        raise UserError(
            "expected data: pass --data SOURCE, or --data teacher:COUNT or --prompts FILE for samples of the teacher"
        )
    way, settings = Way(fresh, shard, dry_run, device_memory), options.settings(set_, seed)
    if model is not None and initial is None:
        way.check_begun(stated_of_teacher(model, steps or 4, data, settings), out or default_output(model, steps or 4))
    named = [each for each in (initial, model) if each is not None]
    begin(f"opening {initial or model or 'the teacher'}", models=named, data=data)
    from progdist.data.tables import Columns
    from progdist.recipes.files import call_arguments, override
    from progdist.recipes.from_teacher import Request, recipe_for_teacher
    from progdist.runs.prepared_teacher import prepared_teacher
    from progdist.teachers.open import open_teacher
    from progdist.teachers.own import last_stage
    from progdist.teachers.prepared import Source

    if initial is not None:
        if idle := [option for option, value in {"--start": start, "--steps": steps}.items() if value]:
            raise UserError(f"{idle[0]} has no effect with --from, whose student records its stage: remove it")
        beside, start, steps = last_stage(initial)
        model = model or str(beside)
    if model is None:
        raise UserError("expected a teacher's MODEL, or a student to start from: --from FOLDER")
    steps = steps or 4
    arguments = call_arguments(call or [])
    folder = out or default_output(str(initial or model), steps)
    source = Source(model, tuple(with_lora or ()), config)
    place = prepared_teacher(source, folder, fresh=fresh, dry=dry_run, note=console.print)
    teacher = open_teacher(place, call=arguments)
    for line in teacher.summary:
        console.print(line)
    request = Request(
        model, data or "teacher", folder.name, steps, prompts=prompts, call=arguments,
        columns=Columns(image_column, caption_column),
        start=start or 256, updates=updates, conversion_updates=conversion_updates, batch=batch,
        guidance=_guidance(guidance), negative=negative, lora=lora, base_bits=base_bits, background=background,
        method=method, loras=tuple(source.loras), config=config, initial=str(initial) if initial else None,
    )  # fmt: skip
    recipe = override(recipe_for_teacher(teacher, request), settings)
    console.print(f"chain: {' -> '.join(map(str, recipe.distill.counts()))}")
    how = recipe.teacher
    asked = (how.model, how.offset, how.call, how.loras, how.config)
    kept = asked == (model, None, arguments, source.loras, config)
    way.carry_out(recipe, folder, teacher if kept else None)
    way.suggest(recipe, folder)


@app.command()
@user_errors
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Rebuild a run's report.html."""
    begin(f"reading {folder}")
    from progdist.runs.folder import RunFolder
    from progdist.runs.pages.report import write_report

    console.print(f"Report: {write_report(RunFolder(folder))}")


OF_A_COPY = """\
# For your own data, `progdist init folder:my-images` writes a recipe that fits them.
# In a copy of this one, change name (the folder of its run), data.source, and
# evaluate.features (pixels).
"""


@app.command()
@user_errors
def recipes(name: Annotated[str | None, typer.Argument(help="Recipe to print.")] = None) -> None:
    """List the shipped recipes, or print one."""
    from rich.table import Table
    from rich.text import Text

    from progdist.recipes.text import read_yaml

    if name is not None:
        text = recipe_text(name)
        if name not in shipped():
            begin(f"reading {name}", write_message)
            from progdist.recipes.files import read_recipe

            read_recipe(name)
        typer.echo(f"{OF_A_COPY if name in shipped() else ''}{text}", nl=False)
        return
    listed = Table.grid(padding=(0, 2))
    for shipped_name, text in shipped().items():
        listed.add_row(Text(shipped_name, style="bold"), read_yaml(text)["about"])
    print_table(listed)
    suggest("progdist run digits, or progdist init folder:my-images for your own images")


def _guidance(text: str | None) -> float | tuple[float, float] | None:
    """A guidance scale, or LO:HI."""
    if text is None:
        return None
    try:
        numbers = [float(number) for number in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(f"--guidance {text}: expected a number, e.g. 3, or a range, e.g. 1:8")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


OTHERS: list[Callable[..., None]] = [
    init, runs, models.doctor, fit.fit, models.sample, evaluation.evaluate, models.play, models.export,
    models.import_official, evaluation.statistics, evaluation.compare,
]  # fmt: skip
for command in OTHERS:
    app.command(command.__name__.replace("_", "-"))(user_errors(command))


def start(arguments: Any = None) -> None:  # noqa: ANN401  (whatever typer takes)
    """Run a command; characters that the terminal cannot show are replaced."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    app(arguments)
