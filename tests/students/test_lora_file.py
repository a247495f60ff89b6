"""LoRA files: the stock pipeline with its own weights and the file makes what the student makes."""

# pyright: reportArgumentType=false

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from peft.tuners.lora import LoraLayer
from torch import nn

from progdist import UserError
from progdist.diffusion.sampler import sample
from progdist.methods.guidance import Fixed
from progdist.models.model import LoraWeights, Model
from progdist.students.card import card
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.training.lora import adapter_weights, add_lora, load_adapter, merge_lora
from support.text import PROMPTS, WRITERS

KINDS = pytest.mark.parametrize(
    "kind", ["StableDiffusionPipeline", pytest.param("StableDiffusionXLPipeline", marks=pytest.mark.slow)]
)


def adapted(network: nn.Module, rank: int = 3) -> nn.Module:
    """A network whose adapters all do something."""
    student = add_lora(network, rank, seed=0)
    torch.manual_seed(1)
    for parameter in student.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return student


def layers(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


@dataclass
class Made:
    """A base, a student of four steps, its folder, and the base's stock pipeline with its file."""

    base: Model
    network: nn.Module
    student: Path
    pipeline: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @cache
    def of(kind: str) -> Made:
        place = tmp_path_factory.mktemp(kind)
        base = open_teacher(str(WRITERS[kind](place / "base"))).model
        network, prompts = adapted(base.denoiser.network), base.conditioning.after(Fixed(3.0))
        lora = LoraWeights(str(place / "base"), adapter_weights(network))
        merged = base.denoiser.with_network(merge_lora(network))
        save(replace(base, denoiser=merged, steps=(4,), conditioning=prompts, lora=lora), place / "student")
        pipeline = getattr(diffusers, kind).from_pretrained(place / "base")
        pipeline.load_lora_weights(place / "student")
        pipeline.set_progress_bar_config(disable=True)
        return Made(base, network, place / "student", pipeline)

    return of


@KINDS
def test_every_trained_layer_is_loaded(kind: str, made: Callable[[str], Made]) -> None:
    trained, loaded = layers(made(kind).network), layers(made(kind).pipeline.unet)
    assert len(trained) > 80
    assert loaded.keys() == trained.keys()
    for name, layer in loaded.items():
        assert set(layer.scaling.values()) == {1.0}
        for part in ("lora_A", "lora_B"):
            (theirs,), (ours,) = getattr(layer, part).values(), getattr(trained[name], part).values()
            assert torch.equal(theirs.weight, ours.weight)


@KINDS
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler under NumPy 2
def test_base_and_file_make_what_the_student_makes(kind: str, made: Callable[[str], Made]) -> None:
    """The network's output; and latents by DDIM and by Euler's method, which begins at sigma_1 times the noise."""
    student, pipeline = load(made(kind).student), made(kind).pipeline
    condition = student.conditions(None, PROMPTS)({"labels": torch.arange(len(PROMPTS))})
    noise, own = torch.randn(len(PROMPTS), 4, 4, 4), pipeline.scheduler.config
    arguments: Any = student.denoiser.arguments(**condition)
    ours, plain = (
        model.denoiser.network(noise, 700, **arguments).sample for model in (student, made(kind).base)
    )  # fmt: skip
    assert float((ours - plain).abs().max()) > 0.1
    torch.testing.assert_close(pipeline.unet(noise, 700, **arguments).sample, ours, rtol=0, atol=1e-5)
    ddim = DDIMScheduler.from_config(own, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)
    euler = EulerDiscreteScheduler.from_config(own, timestep_spacing="trailing")
    last = float(student.denoiser.schedule.sigma(torch.ones((), dtype=torch.float64)))
    for scheduler, begin in ((ddim, 1.0), (euler, last)):
        for steps in (1, 2, 4):
            pipeline.scheduler = scheduler
            ours = sample(student.denoiser, begin * noise, steps, **condition)
            found = pipeline(
                PROMPTS, guidance_scale=1.0, num_inference_steps=steps, latents=noise.clone(), output_type="latent"
            ).images
            assert float((found - ours).abs().max() / ours.abs().max()) < 1e-5


@KINDS
def test_the_card_samples_base_and_file(
    kind: str, made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(kind).student
    text = (folder / "README.md").read_text()
    assert "LoRA weights of rank 3 for" in text
    codes = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(codes) == 2
    monkeypatch.chdir(folder)
    images = []
    for code in codes:
        scope: dict[str, Any] = {}
        torch.manual_seed(0)
        exec(code, scope)
        images.append(scope["images"][0])
    assert images[0].tobytes() == images[1].tobytes()


def test_a_base_on_the_hub_is_named_with_its_revision(made: Callable[[str], Made]) -> None:
    student = load(made("StableDiffusionPipeline").student)
    assert student.lora is not None
    student = replace(student, lora=replace(student.lora, base="hub:owner/name@main"))
    text = card(student, "StableDiffusionPipeline", ())
    assert 'from_pretrained("owner/name", revision="main")' in text


def test_training_goes_on_from_a_folders_adapters(made: Callable[[str], Made]) -> None:
    """Base and adapters are the saved network."""
    known = made("StableDiffusionPipeline")
    model = load(known.student)
    assert model.lora is not None
    assert model.lora.rank == 3
    again = add_lora(known.base.denoiser.network, 3, seed=5)
    load_adapter(again, model.lora.weights)
    for ours, saved in zip(merge_lora(again).parameters(), model.denoiser.network.parameters(), strict=True):
        torch.testing.assert_close(ours, saved, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="another rank"):
        load_adapter(add_lora(known.base.denoiser.network, 2, seed=0), model.lora.weights)


def test_a_folder_without_its_file_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = shutil.copytree(made("StableDiffusionPipeline").student, tmp_path / "student")
    (folder / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"lora_weights\.safetensors is missing"):
        load(folder)
