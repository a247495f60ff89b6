"""A Hugging Face Space that samples a student with stock diffusers (`progdist play MODEL --space FOLDER`).

app.py               a Gradio page of one function, (seed, class or prompt, guidance) -> 16 images
requirements.txt     diffusers, torch and their dependencies, without progdist
README.md            with the Space's metadata
student/             the model's folder; for a model on the hub app.py names it instead
"""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from progdist._utils.errors import UserError
from progdist._utils.words import any_of
from progdist.data.grid import enlargement
from progdist.methods.guidance import Input
from progdist.models.guidance_input import class_guidance
from progdist.models.model import Model
from progdist.models.pipelines import PIPELINES
from progdist.students.card import CAPTION, numbers_of
from progdist.students.folder import stock_class
from progdist.teachers.own import load

SDK_VERSION = "6.31.0"  # Gradio's version with which the page was tested
IMAGES = 16

README = """---
title: {title}
emoji: 🪜
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {sdk}
app_file: app.py
license: other
{models}---

# {title}

Samples of a diffusion model in {steps}, distilled by progdist. Before you publish it, set the license above to one that
the teacher and its data allow.
"""

APP = '''"""{title}: samples in {steps}, by stock diffusers."""

import gradio as gr
import torch
{imports}
from PIL import Image

{opening}


def draw({parameters}):
    """The images of one noise."""
    generator = torch.Generator().manual_seed(int(seed))
{drawing}
{enlarging}

demo = gr.Interface(draw, [{inputs}], gr.Gallery(label="{steps}", columns=4), title="{title}", flagging_mode="never")

if __name__ == "__main__":
    demo.launch()
'''

LOOP = """    scheduler.set_timesteps({grid})
    labels = {labels}
    z = {begin}torch.randn({count}, network.config.in_channels, {height}, {width}, generator=generator)
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            output = network({input}, {timestep}, class_labels=labels).sample
        z = scheduler.step(output, timestep, z).prev_sample
    pixels = ((z.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(each.squeeze()) for each in pixels]
"""


def write_space(source: str, folder: Path, out: Path) -> None:
    """Write the Space of a model in `folder`, named `source` (a path, or `hub:owner/name[@revision]`).

    Raises:
        UserError: `out` exists, or no stock pipeline or scheduler makes the model's images.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder for --space, or remove it")
    model = load(folder)
    app = _app(model, _title(source), _argument(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        place = Path(scratch) / out.name
        place.mkdir()
        (place / "app.py").write_text(app)
        (place / "requirements.txt").write_text(_requirements(model))
        (place / "README.md").write_text(_readme(model, source))
        if not source.startswith("hub:"):
            shutil.copytree(folder, place / "student")
        place.replace(out)


def _title(source: str) -> str:
    name = source.removeprefix("hub:").partition("@")[0] if source.startswith("hub:") else Path(source).resolve().name
    return "".join(each for each in name if each.isalnum() or each in "-_./ ")


def _argument(source: str) -> str:
    """The argument of `from_pretrained`."""
    if not source.startswith("hub:"):
        return '"student"'
    name, _, revision = source.removeprefix("hub:").partition("@")
    return repr(name) + (f", revision={revision!r}" if revision else "")


def _steps(model: Model) -> str:
    return any_of([min(model.steps, default=256)], "step")


def _readme(model: Model, source: str) -> str:
    name = source.removeprefix("hub:").partition("@")[0]
    models = f"models:\n- {name}\n" if source.startswith("hub:") else ""
    return README.format(title=_title(source), sdk=SDK_VERSION, models=models, steps=_steps(model))


def _requirements(model: Model) -> str:
    names = ["diffusers", "torch", "accelerate", "safetensors"]
    names += ["transformers", "sentencepiece", "protobuf"] * model.conditioning.takes_prompts
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in names)


def _app(model: Model, title: str, argument: str) -> str:
    """The text of app.py; a UserError if stock diffusers alone does not sample the model."""
    stock, steps = stock_class(model), min(model.steps, default=256)
    numbers = numbers_of(model, stock, steps)
    if stock is None or model.lora or class_guidance(model.denoiser.network) is not None:
        raise _refusal(title)
    if stock in PIPELINES:
        call = f"prompt, num_images_per_prompt={IMAGES}", "guidance_scale=" + _guidance(model)
    elif stock == "DiTPipeline":
        call = f"[label] * {IMAGES}", "guidance_scale=1.0"
    elif stock in ("DDIMScheduler", "LDMPipeline") and not model.labels:
        call = (f"batch_size={IMAGES}",)
    elif stock.endswith("Scheduler"):
        call = ()
    else:
        raise _refusal(title)
    if call:
        name, every = numbers["pipeline"], ", ".join((*call, f"num_inference_steps={steps}, generator=generator"))
        imports, opening = f"from diffusers import {name}", f"pipeline = {name}.from_pretrained({argument})"
        drawing = f"    images = pipeline({every}).images\n"
    else:
        imports = f"from diffusers import {stock}, UNet2DModel"
        opening = (
            f'network = UNet2DModel.from_pretrained({argument}, subfolder="unet")\n'
            f'scheduler = {stock}.from_pretrained({argument}, subfolder="scheduler")'
        )
        labels = f"torch.full(({IMAGES},), label)" if model.labels else "None"
        drawing = LOOP.format(**numbers | {"labels": labels, "count": IMAGES})
    controls = _controls(model)
    return APP.format(
        title=title, steps=_steps(model), imports=imports, opening=opening, drawing=drawing,
        enlarging=_enlarging(model), parameters=", ".join(controls), inputs=", ".join(controls.values()),
    )  # fmt: skip


def _guidance(model: Model) -> str:
    """The guidance argument of a text-to-image pipeline's call: the chosen scale, or 1."""
    return "guidance" if isinstance(model.guidance, Input) else "1.0"


def _controls(model: Model) -> dict[str, str]:
    """The controls: arguments of `draw` and the code of their inputs."""
    controls = {"seed": 'gr.Number(0, label="seed", precision=0)'}
    if model.conditioning.takes_prompts:
        controls["prompt"] = f'gr.Textbox("{CAPTION}", label="prompt")'
    if model.labels:
        choices = [(model.classes[label], label) for label in model.labels]
        controls["label"] = f'gr.Dropdown({choices!r}, value={model.labels[0]}, label="class")'
    if isinstance(model.guidance, Input):
        low, high = model.guidance.low, model.guidance.high
        controls["guidance"] = f'gr.Slider({low:g}, {high:g}, value={model.scale(None):g}, label="guidance")'
    return controls


def _enlarging(model: Model) -> str:
    """The end of `draw`: small images are enlarged by whole factors."""
    _, height, width = model.image
    factor = enlargement(height, width)
    size = (factor * width, factor * height)
    made = "images" if factor == 1 else f"[image.resize({size}, Image.Resampling.NEAREST) for image in images]"
    return f"    return {made}\n"


def _refusal(title: str) -> UserError:
    return UserError(
        f"--space requires a student that stock diffusers alone samples, got {title}: expected a student of pixels or "
        "classes, a DiT, Stable Diffusion or SDXL, not a LoRA file, and no class guidance as an input"
    )
