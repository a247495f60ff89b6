"""The commands that work on model folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from progdist._utils.errors import UserError
from progdist._utils.names import Method
from progdist.cli.options import (
    DATA_SOURCES,
    CaptionColumn,
    FeatureNames,
    ImageColumn,
    MetricNames,
    References,
    Seed,
    WeightFiles,
    precision_of,
)
from progdist.cli.terminal import console, write_message

VARIANCE = "Of --method ancestral: 0 for the lower bound of the variance, 1 for the upper."


def doctor(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a progdist folder, or hub:OWNER/NAME.")],
    data: Annotated[str | None, typer.Option(help="Images to try it on, e.g. folder:PATH.")] = None,
    offset: Annotated[float | None, typer.Option(help="Timestep offset, if it differs from the folder's.")] = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    seed: Seed = 0,
) -> None:
    """Say what is inferred of a model, and what would go wrong. If something would, the exit code is 2."""
    from progdist.cli.doctor import examine
    from progdist.data.tables import Columns

    amiss = False
    for line in examine(model, data, Columns(image_column, caption_column), offset, seed):
        amiss |= line.startswith("!")
        console.print(line, highlight=False, markup=False, style="bold red" if line.startswith("!") else None)
    if amiss:
        raise typer.Exit(2)


def sample(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many images.", min=1)] = 64,
    out: Annotated[
        Path, typer.Option(help="A grid (.png); a folder or .tar of PNG files; .npz of bytes; .safetensors, unrounded.")
    ] = Path("samples.png"),
    label: Annotated[int | None, typer.Option(help="The class; all in turn if not given.", min=0)] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    level: Annotated[float, typer.Option("--variance", "--level", help=VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "float32",
    seed: Seed = 0,
    columns: Annotated[int | None, typer.Option(help="Columns of the grid; 8 if not given.", min=1)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to make; several times for all in turn.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, of a model distilled for a range.")] = None,
) -> None:
    """Make images with a model. Under torchrun several processes share them."""
    from progdist.evaluation.generate import SamplingOptions
    from progdist.evaluation.sample_files import write_samples
    from progdist.training.distributed import Distributed

    options = SamplingOptions(
        steps,
        count,
        label,
        seed,
        method,
        clip,
        level,
        batch,
        precision_of(precision),
        tuple(prompt or ()),
        guidance,
    )
    write_samples(model, options, out, columns, write_message, Distributed())


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Model folders.")],
    data: Annotated[str | None, typer.Option(help=DATA_SOURCES)] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; each model's own if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each model.", min=2)] = 2048,
    features: FeatureNames = ["pixels"],  # noqa: B006  (typer copies it)
    metric: MetricNames = None,
    reference: References = None,
    weights: WeightFiles = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    level: Annotated[float, typer.Option("--variance", "--level", help=VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    teacher: Annotated[Path | None, typer.Option(help="Also give the RMSE to this model's images.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(help="Steps that --teacher takes; 256 if not given.")] = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per model and features.")] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, of models distilled for a range.")] = None,
) -> None:
    """Measure models against data."""
    from progdist.cli.evaluation import plan_of
    from progdist.data.sources import load_images
    from progdist.data.tables import Columns
    from progdist.evaluation.compare import Reference, compare
    from progdist.evaluation.generate import SamplingOptions

    if teacher_steps is not None and teacher is None:
        raise UserError("--teacher-steps is of --teacher, which is not given: give it, or leave both")
    if data is None and not reference:
        raise UserError("models are measured against data: give --data, or --reference FILE of their statistics")
    if data is None and (image_column or caption_column):
        raise UserError("--image-column and --caption-column are of --data, which is not given: give it, or leave them")
    taught = Reference(teacher, teacher_steps or 256) if teacher else None
    options = SamplingOptions(
        steps, count, None, seed, method, clip, level, batch, precision_of(precision), guidance=guidance
    )
    images = load_images(data, columns=Columns(image_column, caption_column)) if data else None
    for result in compare(
        models, images, options, plan_of(features, metric, weights, reference), taught, write_message
    ):
        if json_:
            typer.echo(json.dumps(result))
        else:
            console.print(_measured(result), highlight=False)


def _measured(result: dict[str, Any]) -> str:
    """One model in one feature space, in words."""
    guided = "" if result["guidance"] is None else f", guidance {result['guidance']:g}"
    words = [
        f"{result['model']} at {result['steps']} steps{guided}: Fréchet {result['frechet']:.3f} "
        f"({result['frechet_low']:.3f} to {result['frechet_high']:.3f})"
    ]
    if result["frechet_bias"] is not None:
        words.append(f"of which bias {result['frechet_bias']:.2g}")
    if result["kernel"] is not None:
        words.append(f"kernel×1000 {result['kernel']:.3f} ± {result['kernel_spread']:.3f}")
    measured = {**result["metrics"], **({"clip_score": result["clip_score"]} if result["clip_score"] else {})}
    for name, found in measured.items():
        words.append(f"{name.replace('_', ' ')} {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
    if result["agreement"] is not None:
        words.append(f"class right {100 * result['agreement']:.1f} %")
    if result["rmse"] is not None:
        words.append(f"RMSE to the teacher {result['rmse']:.3f}")
    words.append(f"{result['network_evaluations']} network evaluations")
    return ", ".join([*words, f"{1000 * result['seconds_per_image']:.2f} ms per image ({result['features']} features)"])


def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.", min=1)] = None,
) -> None:
    """Write a model's whole sampling loop as one ONNX file."""
    from progdist.students.folder import load
    from progdist.students.onnx import export_onnx

    taken = export_onnx(load(model), steps, onnx)
    console.print(f"{onnx}: noise to images in {taken} step{'s' if taken > 1 else ''}", highlight=False, soft_wrap=True)


def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="A file of the paper's release.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="The recipe it was trained by, e.g. cifar10.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of its images.", min=1)] = None,
    parameterization: Annotated[str | None, typer.Option(help="x, eps, v or x_eps.")] = None,
) -> None:
    """Turn a released JAX checkpoint into a model folder."""
    from progdist.recipes.files import read_recipe
    from progdist.students.folder import save
    from progdist.teachers.jax import import_checkpoint

    known = read_recipe(recipe) if recipe else None
    model = import_checkpoint(
        checkpoint,
        size=image_size or (known.data.size if known else None),
        parameterization=parameterization or (known.parameterization if known else None),
        chain_start=known.distill.counts()[0] if known else 0,
    )
    save(model, out)
    console.print(f"{out}: distilled for {', '.join(map(str, model.steps)) or 'any number of'} steps", highlight=False)


def play(
    models: Annotated[list[Path], typer.Argument(help="Folders of runs or of models.")],
    port: Annotated[int, typer.Option(help="Of the page; 0 for any that is free.", min=0, max=65535)] = 8700,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="Open the page; by default not over ssh, nor without a display."),
    ] = None,
) -> None:
    """Play with models on a local page.

    Noise, steps, class and guidance; teacher and students side by side.
    """
    import os
    import sys
    import webbrowser
    from urllib.parse import urlsplit

    from progdist.runs.pages.play import open_playables
    from progdist.runs.pages.server import has_browser
    from progdist.runs.pages.server import play as serve

    opens = has_browser(os.environ, sys.platform) if browser is None else browser

    def ready(url: str) -> None:
        console.print(f"{url} (this machine alone; Ctrl-C ends it)", highlight=False, soft_wrap=True)
        if opens:
            webbrowser.open(url)
        elif browser is None:
            way = "{0}:127.0.0.1:{0}".format(urlsplit(url).port)
            hint = f"no display here: on your machine, ssh -L {way} THIS-MACHINE, and open the address there"
            console.print(hint, highlight=False, soft_wrap=True)

    serve(open_playables(models), port, ready)


COMMANDS: tuple[Callable[..., None], ...] = (doctor, sample, evaluate, play, export, import_official)
