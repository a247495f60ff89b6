"""LoRA runs on a base of 8 or 4 bits: what trains on it, and the student on the base in full, by stock diffusers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from progdist._utils.names import Bits
from progdist.compute.placement import at_work
from progdist.compute.precision import autocast
from progdist.compute.quantized import QuantizedLinear
from progdist.diffusion.sampler import sample
from progdist.distillation import convert, stage_training
from progdist.models.networks import example_condition
from progdist.models.quantized_base import quantized_base
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.estimate.cost import heaviest_stage
from progdist.runs.estimate.memory import kept_bytes
from progdist.runs.run import Run, open_run
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.training.lora import add_lora, load_adapter, merge_lora
from support.commands import SilentCallback, call, refused
from support.text import PROMPTS, write_sd
from support.training import storages


def opened(pairs: Path, bits: Bits, **more: Any) -> Run:  # noqa: ANN401
    """A run of two stages, of an update or two each."""
    base = str(write_sd(pairs.parent / "teacher"))
    request = Request(
        base, f"captions:{pairs}", "a", steps=2, start=8, updates=1, batch=4, lora=2, base_bits=bits, **more
    )
    short = ["teacher.trust=true", "distill.learning_rate=0.02", "distill.precision=float32"]
    recipe = override(recipe_for_teacher(open_teacher(base), request), short)
    return open_run(recipe, pairs.parent / "a", SilentCallback())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_all_stages_share_one_base_and_students_are_of_the_one_in_full(bits: Bits, pairs: Path) -> None:
    """Without a stage 0 the first teacher is the base itself."""
    run = opened(pairs, bits)
    plan, own, trainer = run.context.plan, run.context.teacher, run.trainer()
    assert own is not None
    full = own.model.denoiser.network
    base = quantized_base(full, bits)
    training = stage_training(plan, 1, run.train_teacher(trainer), own)
    assert training.teacher is not None
    assert training.teacher.network is training.model.denoiser.network is base
    first = trainer.fit(training)
    assert first.lora is not None
    second = stage_training(plan, 2, first, own)
    assert second.teacher is not None
    adapter = sum(rows.nbytes for rows in first.lora.weights.values())
    student = add_lora(second.model.denoiser.network, 2, seed=0)
    assert storages(base, second.teacher.network, student) == storages(base) + 2 * adapter
    network = add_lora(full, 2, seed=0)
    load_adapter(network, first.lora.weights)
    for ours, saved in zip(merge_lora(network).parameters(), first.denoiser.network.parameters(), strict=True):
        torch.testing.assert_close(ours, saved, rtol=0, atol=1e-6)
    of_stock_pipelines(Path(str(run.recipe.teacher.model)), pairs.parent / "a" / "student-0004", bits)


def of_stock_pipelines(place: Path, folder: Path, bits: Bits) -> None:
    """A student's file on the base in full makes the latents of its own folder, and those of our sampler."""
    student: Any
    student, card = load(folder), " ".join((folder / "README.md").read_text().split())
    assert student.lora is not None
    assert student.lora.base_bits == json.loads((folder / "progdist.json").read_text())["lora"]["base_bits"] == bits
    assert f"trained on a copy of that pipeline's network in {bits} bits" in card
    assert not any(isinstance(each, QuantizedLinear) for each in student.denoiser.network.modules())
    z, condition = torch.randn(2, *student.shape), student.conditions(None, PROMPTS[:2])({"labels": torch.arange(2)})
    stock: Any = diffusers.StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
    own, base, untouched = (stock.from_pretrained(each) for each in (folder, place, place))
    base.load_lora_weights(folder)
    found = []
    for pipeline in (own, base, untouched):
        pipeline.scheduler = own.scheduler
        pipeline.set_progress_bar_config(disable=True)
        how = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
        found.append(pipeline(PROMPTS[:2], latents=z.clone(), **how).images)
    for other in (found[1], sample(student.denoiser, z, 4, **condition)):
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-5)
    assert float((found[2] - found[0]).abs().max()) > 1e-3


def test_stage_0_learns_the_guided_base(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target is of the network in so many bits, which the student shares, and not of the one in full."""
    run = opened(pairs, 8, guidance=3.0)
    trainer, teacher = run.trainer(), run.context.teacher
    assert teacher is not None
    assert run.predictions is not None
    monkeypatch.setattr(type(trainer), "fit", lambda self, training: training)
    training: Any = convert(run.context.plan, teacher, trainer, run.predictions)
    base = quantized_base(teacher.model.denoiser.network, 8)
    assert training.model.denoiser.network is training.teacher.network is base
    assert training.full is teacher.model.denoiser.network
    called: list[torch.nn.Module] = []
    for network in (base, training.full):
        network.register_forward_pre_hook(lambda module, _: called.append(module))
    x, eps = torch.randn(2, 2, *teacher.model.shape)
    condition = run.context.conditions(training.model)({"labels": torch.zeros(2, dtype=torch.int64)})
    training.loss(training.model.denoiser, x=x, eps=eps, u=torch.tensor([0.3, 0.7], dtype=torch.float64), **condition)
    assert len(called) >= 2
    assert {id(each) for each in called} == {id(base)}


@pytest.mark.parametrize("bf16", [False, True])
def test_a_dry_run_counts_what_training_holds(bf16: bool, pairs: Path) -> None:
    """The bytes of base and adapters exactly, and activations to a tenth of what an update keeps."""
    run = opened(pairs, 8)
    context, own = run.context, run.context.teacher
    assert own is not None
    device, precision = torch.device("cpu"), "bf16" if bf16 else "float32"
    config = replace(run.recipe.student_config(4), precision=precision)
    _, memory = heaviest_stage(run.recipe, own.model, {"student-0004": config}, device)
    training = stage_training(context.plan, 1, own.model, own)
    base, full = training.model.denoiser.network, own.model.denoiser.network
    student = add_lora(base, 2, seed=0)
    adapters = sum(each.nbytes for each in student.parameters() if each.requires_grad)
    assert (memory.weights, memory.gradients, memory.moments) == (adapters, adapters, 2 * adapters)
    x, eps = torch.randn(2, config.batch, *own.model.shape)
    condition = example_condition(training.model.denoiser, config.batch, device)  # prompts of 77 tokens
    u = torch.rand(config.batch, dtype=torch.float64)

    def update() -> None:
        with autocast(device, precision):
            losses = training.loss(training.model.denoiser.with_network(student), x=x, eps=eps, u=u, **condition)
        losses.mean().backward()  # pyright: ignore[reportAttributeAccessIssue]

    before = storages(base, full)
    with at_work(base, device, precision):
        assert memory.teacher == (storages(base) if bf16 else before - storages(full))
        kept = kept_bytes(update, student)
    assert memory.activations == pytest.approx(kept, rel=0.1)


def test_it_is_refused_without_adapters_and_for_other_bits(pairs: Path) -> None:
    place = write_sd(pairs.parent / "teacher")
    words = ("distill", place, "--data", f"captions:{pairs}", "--start", 8, "--out", pairs.parent / "run")
    refused(call(*words, "--base-bits", 8), "base_bits requires lora, whose adapters train on that base: set --lora")
    refused(call(*words, "--lora", 2, "--base-bits", 3), "base_bits")
    assert not (pairs.parent / "run").exists()
