"""The commands."""

import json
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer

from progdist import __version__
from progdist._utils.errors import UserError
from progdist._utils.precision import Precision
from progdist.cli.studies import COMMANDS
from progdist.cli.terminal import RANK, console, user_errors, write_message
from progdist.diffusion.sampler import METHODS

app = typer.Typer(
    name="progdist",
    help="Progressive distillation: diffusion models that sample in 1 to 8 steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; an older run is renamed, never deleted.")]
Shard = Annotated[bool, typer.Option("--shard", help="Spread the network in training over the processes (FSDP2).")]
VARIANCE = "Of --method ancestral: 0 for the lower bound of the variance, 1 for the upper."
Seed = Annotated[int, typer.Option(help="Seed of the noise.", min=0)]


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost estimate and exit.")] = False,
) -> None:
    """Teach, distil, evaluate and report; the same command again continues."""
    from progdist.cli.progress import Terminal, estimate_table
    from progdist.recipes.files import read_recipe
    from progdist.runs.estimate import estimate
    from progdist.runs.run import run as run_recipe

    resolved = read_recipe(recipe, set_ or [])
    if dry_run:
        for part in estimate_table(resolved.name, estimate(resolved)):
            console.print(part, highlight=False)
        return
    folder = out or Path("runs") / resolved.name
    _finish(run_recipe(resolved, folder, Terminal(console), fresh=fresh, shards=shard), folder)


@app.command()
@user_errors
def distill(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a progdist folder, or hub:OWNER/NAME.")],
    data: Annotated[str, typer.Option(help="digits, folder:PATH, idx:PATH, npz:PATH or hub:NAME.")],
    steps: Annotated[int, typer.Option(help="Sampling steps of the final student.", min=1)] = 4,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME-STEPS if not given.")] = None,
    start: Annotated[int, typer.Option(help="The chain starts at no more steps than this.", min=2)] = 256,
    updates: Annotated[
        int, typer.Option(help="Training steps of each stage; the last two stages take twice as many.", min=1)
    ] = 1000,
    match_updates: Annotated[
        int | None, typer.Option(help="Training steps of stage 0; four times --updates if not given.", min=1)
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 64,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale to distil into the student.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the recipe, as in `run`.")] = None,
    fresh: Fresh = False,
    shard: Shard = False,
) -> None:
    """Bring your own teacher: distil a trained model; the same command again continues."""
    from progdist.cli.progress import Terminal
    from progdist.models.io.diffusers_pipeline import read_teacher
    from progdist.recipes.files import override
    from progdist.recipes.from_teacher import default_output, recipe_for_teacher
    from progdist.runs.run import run as run_recipe

    teacher = read_teacher(model)
    for line in teacher.summary:
        console.print(line, highlight=False)
    folder = out or default_output(model, steps)
    proposed = recipe_for_teacher(
        model,
        teacher,
        data,
        name=folder.name,
        steps=steps,
        start=start,
        updates=updates,
        match_updates=match_updates,
        batch=batch,
        guidance=guidance,
    )
    recipe = override(proposed, set_ or [])
    console.print(f"chain: {' -> '.join(map(str, recipe.distill.counts()))}", highlight=False)
    _finish(run_recipe(recipe, folder, Terminal(console), fresh=fresh, shards=shard), folder)
    last = folder / f"student-{recipe.distill.counts()[-1]:04d}"
    console.print(f"The student: {last}", highlight=False, soft_wrap=True)


@app.command()
@user_errors
def doctor(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a progdist folder, or hub:OWNER/NAME.")],
    data: Annotated[str | None, typer.Option(help="Images to try it on, e.g. folder:PATH.")] = None,
    offset: Annotated[float | None, typer.Option(help="Timestep offset, if it differs from the folder's.")] = None,
    seed: Seed = 0,
) -> None:
    """Say what is inferred of a teacher, and what would go wrong; exit code 2 if something would."""
    from progdist.cli.doctor import examine

    amiss = False
    for line in examine(model, data, offset, seed):
        amiss |= line.startswith("!")
        console.print(line, highlight=False, markup=False, style="bold red" if line.startswith("!") else None)
    if amiss:
        raise typer.Exit(2)


@app.command()
@user_errors
def sample(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many images.", min=1)] = 64,
    out: Annotated[Path, typer.Option(help="A PNG file (a grid), or .npz (float32 images).")] = Path("samples.png"),
    label: Annotated[int | None, typer.Option(help="The class; all in turn if not given.", min=0)] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "ddim",
    level: Annotated[float, typer.Option("--variance", "--level", help=VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    seed: Seed = 0,
    columns: Annotated[int, typer.Option(help="Columns of the grid.", min=1)] = 8,
) -> None:
    """Make images with a model."""
    from progdist.evaluation.generate import SamplingOptions, write_samples

    write_samples(model, SamplingOptions(steps, count, label, seed, method, clip, level), out, columns, write_message)


@app.command()
@user_errors
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Model folders.")],
    data: Annotated[str, typer.Option(help="digits, folder:PATH, idx:PATH, npz:PATH or hub:NAME.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; each model's own if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each model.", min=2)] = 2048,
    features: Annotated[str, typer.Option(help="digits, fashion-mnist, pixels or inception.")] = "pixels",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "ddim",
    level: Annotated[float, typer.Option("--variance", "--level", help=VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    teacher: Annotated[Path | None, typer.Option(help="Also give the RMSE to this model's images.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(help="Steps that --teacher takes; 256 if not given.")] = None,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per model.")] = False,
) -> None:
    """Measure models against data."""
    from progdist.evaluation.generate import Reference, SamplingOptions, compare

    if teacher_steps is not None and teacher is None:
        raise UserError("--teacher-steps is of --teacher, which is not given: give it, or leave both")
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision} is unknown: use one of {', '.join(get_args(Precision))}")
    reference = Reference(teacher, teacher_steps or 256) if teacher else None
    options = SamplingOptions(steps, count, None, seed, method, clip, level, batch, cast(Precision, precision))
    for result in compare(models, data, options, features, reference, write_message):
        if json_:
            typer.echo(json.dumps(result))
        else:
            console.print(
                f"{result['model']} at {result['steps']} steps: Fréchet {result['frechet']:.3f} "
                f"({result['frechet_low']:.3f} to {result['frechet_high']:.3f}), kernel×1000 {result['kernel']:.3f}"
                + ("" if result["agreement"] is None else f", class right {100 * result['agreement']:.1f} %")
                + ("" if result["rmse"] is None else f", RMSE to the teacher {result['rmse']:.3f}")
                + f", {result['network_evaluations']} network evaluations, "
                f"{1000 * result['seconds_per_image']:.2f} ms per image",
                highlight=False,
            )


@app.command()
@user_errors
def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.", min=1)] = None,
) -> None:
    """Write a model's whole sampling loop as one ONNX file."""
    from progdist.models.io.folder import load
    from progdist.models.io.onnx import export_onnx

    taken = export_onnx(load(model), steps, onnx)
    console.print(f"{onnx}: noise to images in {taken} step{'s' if taken > 1 else ''}", highlight=False, soft_wrap=True)


@app.command("import-official")
@user_errors
def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="A file of the paper's release.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="The recipe it was trained by, e.g. cifar10.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of its images.", min=1)] = None,
    parameterization: Annotated[str | None, typer.Option(help="x, eps, v or x_eps.")] = None,
) -> None:
    """Turn a released JAX checkpoint into a model folder."""
    from progdist.models.io.folder import save
    from progdist.models.io.jax_checkpoint import import_checkpoint
    from progdist.recipes.files import read_recipe

    known = read_recipe(recipe) if recipe else None
    model = import_checkpoint(
        checkpoint,
        size=image_size or (known.data.size if known else None),
        parameterization=parameterization or (known.parameterization if known else None),
        chain_start=known.distill.counts()[0] if known else 0,
    )
    save(model, out)
    console.print(f"{out}: distilled for {', '.join(map(str, model.steps)) or 'any number of'} steps", highlight=False)


@app.command()
@user_errors
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write a run's report.html anew."""
    from progdist.runs.folder import RunFolder
    from progdist.runs.report import write_report

    console.print(f"Report: {write_report(RunFolder(folder))}", highlight=False, soft_wrap=True)


@app.command()
@user_errors
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one whole.")] = None) -> None:
    """List the recipes that ship, or print one."""
    from progdist.recipes.files import read_recipe, shipped

    if name is not None:
        read_recipe(name)
        typer.echo(shipped().get(name) or Path(name).read_text(), nl=False)
        return
    for known in shipped():
        console.print(f"[bold]{known:15}[/bold] {read_recipe(known).about}", highlight=False)


def _finish(records: list[dict[str, Any]], folder: Path) -> None:
    """Print the table of a run and the path of its report, in the main process."""
    if RANK > 0:
        return
    from progdist.cli.progress import quality_table
    from progdist.runs.folder import RunFolder
    from progdist.runs.report import quality_rows

    quality = records[0]["quality"][0]
    console.print()
    console.print(quality_table(quality_rows(records), quality["features"], quality["samples"]))
    if quality["warning"]:
        console.print(f"Warning: {quality['warning']}", highlight=False)
    console.print(f"Report: {RunFolder(folder).report()}", highlight=False, soft_wrap=True)


for study in COMMANDS:
    app.command()(user_errors(study))


def start(arguments: Any = None) -> None:  # noqa: ANN401  (whatever typer takes)
    """The entry point."""
    torch.set_flush_denormal(True)
    app(arguments)
