"""`progdist compare TEACHER STUDENT`: a student beside its teacher, without data."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

from progdist._utils.files import read_json
from progdist.evaluation.generate import sampling_noise
from progdist.teachers.open import open_teacher
from support.commands import call, refused, succeeds
from support.lora import kohya, weights, write
from support.stock import SaveStock
from support.text import BETAS, PROMPTS, write_sd


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


def test_a_lora_file_on_its_base_is_a_student(stable: Path, prompts: Path, tmp_path: Path) -> None:
    """As a few-step LoRA file that others publish: the stock pipeline with it, unguided, and the base guided by 3."""
    file = write(kohya(weights(stable)), tmp_path / "few.safetensors")
    options = ("--prompts", prompts, "--repeat", 2, "--guidance", 3, "--student-guidance", 1, "--precision", "float32")
    words = ("compare", f"{stable}@8", f"{stable}@2", *options, "--out", tmp_path / "p.html")
    found = json.loads(succeeds(*words, "--student-lora", f"{file}:0.5", "--json").stdout.splitlines()[-1])
    assert found["student"] == f"{stable} with few.safetensors:0.5"
    assert (found["guidance"], found["student_guidance"], found["steps"]) == (3, 1, [2, 8])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(stable)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    noise, texts, made = sampling_noise(open_teacher(str(stable)).model, 4, 0), [*PROMPTS[:2]] * 2, []
    for steps, scale in ((8, 3.0), (2, 1.0)):
        if steps == 2:
            pipeline.load_lora_weights(str(tmp_path), weight_name="few.safetensors", adapter_name="few")
            pipeline.set_adapters(["few"], [0.5])
        how = {"guidance_scale": scale, "num_inference_steps": steps, "latents": noise, "output_type": "pt"}
        made.append(2 * pipeline(texts, **how).images - 1)
    apart = (made[0] - made[1]).square().flatten(1).mean(1)
    assert found["rms"]["value"] == pytest.approx(float(apart.mean().sqrt()), rel=1e-4)
    assert "guidance 3 (student\n1)" in (tmp_path / "p.html").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of how diffusers makes Euler's table
def test_a_few_step_model_from_elsewhere(stable: Path, prompts: Path, tmp_path: Path) -> None:
    """A whole folder of another maker, with Euler's scheduler, unguided: only itself at one scale is without error."""
    other = shutil.copytree(stable, tmp_path / "turbo")
    index = read_json(other / "model_index.json") | {"scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]}
    (other / "model_index.json").write_text(json.dumps(index))
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1)
    scheduler.save_pretrained(other / "scheduler")
    options = ("--prompts", prompts, "--repeat", 2, "--precision", "float32", "--out", tmp_path / "p.html", "--json")
    words = ("compare", f"{stable}@2", f"{other}@2", *options)
    same = json.loads(succeeds(*words).stdout.splitlines()[-1])
    guided = json.loads(succeeds(*words, "--guidance", 3, "--student-guidance", 1).stdout.splitlines()[-1])
    assert same["rms"]["value"] == pytest.approx(0, abs=1e-6)
    assert guided["rms"]["value"] > 0.01


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
    refused(call(*pair, "--data", "digits", "--student-guidance", 1), "--student-guidance have no effect with --data")
    refused(
        call(*pair, "--student-guidance", 1), "--student-guidance 1 applies only to a pipeline that is guided by two"
    )
    refused(
        call(*texts, "--student-lora", tmp_path / "a.safetensors"), "a.safetensors is not a file, expected LoRA weights"
    )
    assert not (tmp_path / "p.html").exists()
    assert torch.is_grad_enabled()
