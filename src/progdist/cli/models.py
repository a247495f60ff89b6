"""The commands that work on model folders."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.names import Method
from progdist._utils.words import any_of, counted
from progdist.cli import options
from progdist.cli.terminal import console, write_message


def doctor(
    model: Annotated[str, typer.Argument(help=options.MODEL)],
    data: Annotated[str | None, typer.Option(help="Images to test it on, e.g. folder:PATH.")] = None,
    offset: Annotated[float | None, typer.Option(help="Timestep offset (default: the folder's).")] = None,
    call: options.Call = None,
    with_lora: options.WithLora = None,
    config: options.Config = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    background: options.Background = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise (default: 0).", min=0)] = None,
) -> None:
    """Print what is inferred from a model. Exits with code 2 if it could not be distilled as it is."""
    from progdist.cli.doctor import Opening, examine
    from progdist.data.tables import Columns
    from progdist.recipes.files import call_arguments

    given = {"--seed": seed, "--image-column": image_column, "--caption-column": caption_column}
    given["--background"] = background
    if data is None and (idle := [option for option, value in given.items() if value is not None]):
        raise UserError(f"{idle[0]} requires --data")
    amiss = False
    how = Opening(offset, call_arguments(call or []), tuple(with_lora or ()), config)
    for line in examine(model, data, Columns(image_column, caption_column), how, seed or 0, background):
        amiss |= line.startswith("!")
        console.print(line, style="bold red" if line.startswith("!") else None)
    if amiss:
        raise typer.Exit(2)


def sample(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many images.", min=1, max=options.MOST)] = 64,
    out: Annotated[
        Path, typer.Option(help="A grid (.png); a folder or .tar of PNG files; .npz of bytes; .safetensors, unrounded.")
    ] = Path("samples.png"),
    label: Annotated[
        str | None, typer.Option(help="The class, its number or name (default: all, in the data's shares).")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    variance: Annotated[float, typer.Option("--variance", help=options.VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "float32",
    seed: options.Seed = 0,
    columns: Annotated[int | None, typer.Option(help="Columns (default: a grid near 4:3).", min=1, max=1024)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to make; several times for all in turn.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, of a model distilled for a range.")] = None,
) -> None:
    """Make images with a model. Under torchrun several processes share them."""
    from progdist.evaluation.generate import SamplingOptions
    from progdist.evaluation.sample_files import write_samples
    from progdist.training.distributed import Distributed

    computed, texts = options.precision_of(precision), tuple(prompt or ())
    sampling = SamplingOptions(steps, count, label, seed, method, clip, variance, batch, computed, texts, guidance)
    write_samples(model, sampling, out, columns, write_message, Distributed())


def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write the sampling loop to this file.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of --onnx (default: the model's own).", min=1)
    ] = None,
    lora_format: Annotated[
        str | None, typer.Option(help="Write a LoRA student's file in a format: diffusers, kohya or comfyui.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .safetensors file of --lora-format.")] = None,
    workflow: Annotated[
        Path | None, typer.Option(help="A ComfyUI workflow (.json) that samples the file of --lora-format comfyui.")
    ] = None,
) -> None:
    """Export a model as ONNX, or its LoRA in other formats.

    `--onnx` writes the whole sampling loop as one file. `--lora-format` writes a LoRA student for other programs.
    """
    from progdist.teachers.own import load

    if (onnx is None) == (lora_format is None):
        raise UserError("expected either --onnx FILE or --lora-format FORMAT --out FILE")
    if onnx is not None:
        given = {"--out": out, "--workflow": workflow}
        if idle := [option for option, value in given.items() if value is not None]:
            raise UserError(f"{idle[0]} requires --lora-format")
        from progdist.students.onnx import export_onnx

        made = export_onnx(load(model), steps, onnx)
        console.print(f"{onnx}: noise to images in {counted(made, 'step')}")
        return
    if steps is not None:
        raise UserError("--steps applies only to --onnx: a LoRA student has its own number of steps")
    from progdist.students.lora_export import export_lora
    from progdist.students.lora_formats import FORMATS

    if lora_format not in FORMATS:
        raise UserError(f"--lora-format is {str(lora_format)[:50]!r}, expected one of {', '.join(FORMATS)}")
    if out is None:
        raise UserError("--lora-format requires --out FILE")
    if workflow is not None and lora_format != "comfyui":
        raise UserError("--workflow requires --lora-format comfyui")
    written = export_lora(load(model), lora_format, out, workflow)
    count = counted(len(written.times.timesteps), "step")
    console.print(
        f"{out}: {counted(written.layers, 'layer')}, {counted(written.tensors, 'tensor')}; Euler in {count}, CFG 1"
    )
    if workflow is not None:
        console.print(f"{workflow}: choose the files of the base model in its loaders")


def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the paper's release.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe it was trained with, e.g. cifar10.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the images.", min=1)] = None,
    parameterization: Annotated[str | None, typer.Option(help="x, eps, v or x_eps.")] = None,
) -> None:
    """Convert a released JAX checkpoint to a model folder."""
    from progdist.recipes.files import read_recipe
    from progdist.students.folder import save
    from progdist.teachers.jax import import_checkpoint

    trained = read_recipe(recipe) if recipe else None
    model = import_checkpoint(
        checkpoint,
        size=image_size or (trained.data.size if trained else None),
        parameterization=parameterization or (trained.parameterization if trained else None),
        chain_start=trained.distill.counts()[0] if trained else 0,
    )
    save(model, out)
    console.print(f"{out}: distilled for {any_of(model.steps, 'step') if model.steps else 'any number of steps'}")


def play(
    models: Annotated[list[str], typer.Argument(help="Folders of runs or of models.")],
    port: Annotated[
        int | None, typer.Option(help="Port of the page (default: 8700; 0: any free port).", min=0, max=65535)
    ] = None,
    browser: Annotated[
        bool | None, typer.Option("--browser/--no-browser", help="Open a browser (default: where there is a display).")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="Write a Hugging Face Space of one model to this folder instead.")
    ] = None,
) -> None:
    """Sample models on a local page.

    Choose noise, steps, class and guidance; teacher and students side by side. `--space` writes a page for the
    Hugging Face hub.
    """
    import os
    import sys
    import webbrowser
    from urllib.parse import urlsplit

    if space is not None:
        if idle := [option for option, value in {"--port": port, "--browser": browser}.items() if value is not None]:
            raise UserError(f"{idle[0]} has no effect with --space: remove it")
        if len(models) > 1:
            raise UserError(f"--space requires one model, got {len(models)}: name one student")
        from progdist.students.space import write_space
        from progdist.teachers.open import resolve_folder

        write_space(models[0], resolve_folder(models[0]), space)
        console.print(f"{space}: a Space of {models[0]}; publish: hf upload OWNER/NAME {space} --repo-type space")
        return
    from progdist.runs.pages.play import open_playables
    from progdist.runs.pages.server import has_browser
    from progdist.runs.pages.server import play as serve

    opens = has_browser(os.environ, sys.platform) if browser is None else browser

    def ready(url: str) -> None:
        console.print(f"{url} (this machine only; press Ctrl-C to stop)")
        if opens:
            webbrowser.open(url)
        elif browser is None:
            way = "{0}:127.0.0.1:{0}".format(urlsplit(url).port)
            hint = f"no display: run ssh -L {way} THIS-MACHINE on your own machine and open the address there"
            console.print(hint)

    serve(open_playables([local_path(model) for model in models]), 8700 if port is None else port, ready)
