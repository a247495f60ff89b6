"""`progdist compare TEACHER STUDENT`: a student beside its teacher, without data."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from progdist.evaluation.generate import sampling_noise
from progdist.teachers.open import open_teacher
from support.commands import call, refused, succeeds
from support.stock import SaveStock
from support.text import PROMPTS, write_sd


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("sd") / "teacher")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS[:2]))
    return file


def test_a_model_is_faithful_to_itself(stable: Path, prompts: Path, tmp_path: Path) -> None:
    words = ("compare", f"{stable}@4", f"{stable}@4", "--prompts", prompts, "--repeat", 2, "--out", tmp_path / "p.html")
    found = json.loads(succeeds(*words, "--json").stdout.splitlines()[-1])
    assert (found["images"], found["conditions"], found["steps"], found["guidance"]) == (4, 2, [4, 4], None)
    assert found["rms"]["value"] == 0
    pairs = found["spaces"]["pixels"]["pairs"]
    assert pairs["share"]["value"] == 0
    assert pairs["diversity"]["value"] == pytest.approx(1)
    assert found["spaces"]["pixels"]["frechet"]["value"] == pytest.approx(0, abs=1e-4)


def test_the_difference_of_two_step_counts_is_that_of_the_stock_pipelines_images(
    stable: Path, prompts: Path, tmp_path: Path
) -> None:
    """Guided by 3; and the page shows the pair that differs most first."""
    page = tmp_path / "p.html"
    options = ("--prompts", prompts, "--repeat", 2, "--guidance", 3, "--precision", "float32", "--out", page)
    words = ("compare", f"{stable}@8", f"{stable}@2", *options)
    found = json.loads(succeeds(*words, "--json").stdout.splitlines()[-1])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(stable)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    model = open_teacher(str(stable)).model
    noise, texts, made = sampling_noise(model, 4, 0), [*PROMPTS[:2]] * 2, []
    for steps in (2, 8):
        how = {"guidance_scale": 3.0, "num_inference_steps": steps, "latents": noise, "output_type": "pt"}
        made.append(2 * pipeline(texts, **how).images - 1)
    apart = (made[0] - made[1]).square().flatten(1).mean(1)
    assert found["rms"]["value"] == pytest.approx(float(apart.mean().sqrt()), rel=1e-4)
    shown = [int(number) for number in re.findall(r"image (\d+), RMS", page.read_text())]
    assert shown == apart.argsort(descending=True).tolist()


def test_classes_are_made_in_turn_and_models_without_any_are_compared(stock: SaveStock, tmp_path: Path) -> None:
    for classes, count in ((3, 6), (None, 8)):
        folder = stock(classes=classes)
        size = ("--repeat", 2) if classes else ("-n", 8)
        words = ("compare", f"{folder}@4", f"{folder}@2", *size, "--out", tmp_path / "p.html")
        found = json.loads(succeeds(*words, "--json").stdout.splitlines()[-1])
        assert (found["images"], found["conditions"]) == (count, classes or 0)
        assert found["rms"]["value"] > 0


def test_the_table_fits_a_terminal(stock: SaveStock, tmp_path: Path) -> None:
    folder = stock()
    output = succeeds("compare", f"{folder}@4", f"{folder}@2", "-n", 8, "--out", tmp_path / "p.html").stdout
    assert "diversity / the teacher's" in output
    table = [line for line in output.splitlines() if str(tmp_path) not in line and not line.startswith("Warning")]
    assert max(map(len, table)) <= 80


def test_mistakes(stable: Path, stock: SaveStock, prompts: Path, tmp_path: Path) -> None:
    other, out = stock(), ("--out", tmp_path / "p.html")
    refused(call("compare", other, f"{other}@4", *out), "supports any number of steps: choose one")
    refused(call("compare", f"{other}@4", *out), "expected a teacher and its student, got 1 models")
    refused(call("compare", f"{other}@4", f"{stable}@4", *out), "do not sample from the same noise and classes")
    refused(call("compare", f"{stable}@4", f"{stable}@2", *out), "the models require prompts: give a text file")
    refused(
        call("compare", f"{other}@4", f"{other}@2", "--prompts", prompts, *out),
        "prompts apply only to text-to-image models",
    )
    refused(call("compare", f"{other}@4", f"{other}@2", "--background", "white", *out), "require --data")
    pair = ("compare", f"{other}@4", f"{other}@2", *out)
    refused(call(*pair, "--repeat", 3), "--repeat applies only to models with prompts or classes")
    refused(call(*pair, "--metric", "inception_score"), "--metric inception_score requires --data")
    texts = ("compare", f"{stable}@4", f"{stable}@2", "--prompts", prompts, *out)
    refused(call(*texts, "-n", 8), "--count applies only to models without prompts or classes")
    refused(call(*texts, "--clip"), "clip applies only to images")
    refused(call(*pair, "--data", "digits", "--repeat", 3), "--repeat have no effect with --data")
    assert not (tmp_path / "p.html").exists()
    assert torch.is_grad_enabled()
