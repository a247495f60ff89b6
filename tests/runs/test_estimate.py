"""The cost estimate: its arithmetic, and what a dry run prints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist import Cosine, Denoiser
from progdist.compute.precision import autocast
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.methods import METHODS
from progdist.recipes.files import read_recipe, validated
from progdist.recipes.recipe import Recipe
from progdist.runs.estimate.cost import Estimate, estimate, heaviest_stage
from progdist.runs.estimate.memory import activation_bytes, kept_bytes, training_memory
from progdist.runs.run import open_run, untrained
from progdist.teachers.open import open_teacher
from progdist.training.config import TrainConfig
from progdist.training.state import MAIN, State
from support.commands import UNTRAINED, SilentCallback, call, refused
from support.stock import SaveStock, stock_network


def estimated(recipe: Recipe) -> Estimate:
    run = open_run(recipe, Path("not there"), SilentCallback(), dry=True)
    run.prepare()
    return estimate(run)


@pytest.mark.slow
def test_a_dry_run_estimates_and_writes_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", tiny_recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    network = untrained(read_recipe(str(tiny_recipe)), (1, 8, 8), (), "digits").denoiser.network
    assert f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters" in result.output
    assert max(len(line) for line in result.output.splitlines() if not line.startswith("warning: ")) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("known_rates")
def test_a_dry_run_needs_no_data_where_the_recipe_says_enough(tmp_path: Path, tiny_recipe: Path) -> None:
    stated = ("data.size=16", "data.channels=3", "data.classes=7", "network.class_conditional=true")
    stated = (*stated, "evaluate.features=[pixels]")
    arguments = [word for setting in (*stated, "data.source=folder:/not/there") for word in ("--set", setting)]
    result = call("run", tiny_recipe, "--dry-run", *arguments)
    assert result.exit_code == 0, result.output
    assert "3x16x16, 7 classes" in result.output
    result = call("run", tiny_recipe, "--dry-run", "--set", "data.source=folder:/not/there")
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluate.metrics=[clip_score]"], "clip_score requires captions"),
        (["distill.weighting=snr"], "the weighting is 2.1e-09 at t = 1"),
        (["evaluate.reference={inception: a.npz}"], "reference inception=a.npz is not used by any metric"),
        (["data.size=16", "data.channels=3"], "features 'digits' require images of (1, 8, 8)"),
        (["data.source=npz:plain.npz", "network.class_conditional=true"], "plain.npz has no labels"),
        (["data.source=npz:plain.npz", "data.classes=3"], "data.classes is 3, but"),
        (["data.source=folder:/not/there"], "is not a folder"),
        (["distill.stop={held_out: 5000}"], "5000"),
        (["evaluate.guidance=3"], "evaluate.guidance 3 has no effect"),
        (["evaluate.cuda_graphs=true"], "cuda_graphs"),
        (["distill.stages.1.cuda_graphs=true"], "student-0001: "),
        (["data.resample=bilinear"], "data.resample requires data.size"),
        (["network.multipliers=[1, 2, 2, 2, 2, 2]"], "8"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
) -> None:
    """In the same words, and neither writes anything."""
    monkeypatch.chdir(tmp_path)
    np.savez("plain.npz", images=np.zeros((20, 8, 8), np.uint8))
    words = ["run", tiny_recipe, "--out", "out", *(word for each in settings for word in ("--set", each))]
    dry, wet = call(*words, "--dry-run"), call(*words)
    refused(wet, message)
    assert dry.stderr == wet.stderr
    assert dry.exit_code == wet.exit_code
    assert [path.name for path in tmp_path.iterdir()] == ["plain.npz"]


@pytest.mark.slow
def test_a_dry_run_of_ones_own_model_refuses_what_the_run_refuses(stock: SaveStock, tmp_path: Path) -> None:
    """A network of noise, guidance without classes, and a folder that holds something else."""
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    words = ("distill", stock(), "--data", "digits", "--steps", 4)
    for more, message in (
        (("--out", tmp_path / "out"), "trust=true"),
        (("--out", tmp_path / "out", "--guidance", 3, *UNTRAINED), "guidance"),
        (("--out", tmp_path / "taken", *UNTRAINED), "exists and is not a run"),
        (("--out", tmp_path / "taken", "--fresh", *UNTRAINED), "exists and is not a run"),
    ):
        dry, wet = call(*words, *more, "--dry-run"), call(*words, *more)
        refused(wet, message)
        assert dry.stderr == wet.stderr
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("known_rates")
def test_the_estimates_arithmetic(tiny_recipe: Path) -> None:
    """With known rates the hours are U (B (k f + g) + o), and evaluations are counted stage by stage."""
    found = estimated(read_recipe(str(tiny_recipe), ["distill.chain=[8,2,1]", "distill.stages.1.updates=5"]))
    teacher, first, last, evaluation = found.parts
    assert (teacher.name, teacher.frozen_evaluations, teacher.trained_evaluations) == ("teacher", 0, 12 * 8)
    assert teacher.hours == pytest.approx(12 * (8 * 2.0 + 0.25) / 3600)
    assert (first.name, first.frozen_evaluations, first.trained_evaluations) == ("student-0002", 4 * 3 * 8, 3 * 8)
    assert first.hours == pytest.approx(3 * (8 * (4 * 0.5 + 2.0) + 0.25) / 3600)
    assert last.frozen_evaluations == 2 * 5 * 8
    assert evaluation.frozen_evaluations == 96 * (8 + 2 + 2 + 1 + 1)
    n, memory = found.parameters, found.memory
    assert found.heaviest == "student-0001"  # beside which the run's teacher rests, and its own
    assert (memory.weights, memory.gradients, memory.moments, memory.average) == (4 * n, 4 * n, 8 * n, 0)
    assert (memory.teacher, memory.resting) == (0, 8 * n)


@pytest.mark.usefixtures("known_rates")
def test_a_self_taught_target_takes_two_evaluations_and_an_average(tiny_recipe: Path) -> None:
    settings = ["distill.chain=[8,1]", "distill.method=tract", "distill.ema=0.5"]
    found = estimated(read_recipe(str(tiny_recipe), settings))
    assert found.parts[1].frozen_evaluations == 2 * 3 * 8
    assert (found.heaviest, found.memory.average) == ("student-0001", 4 * found.parameters)


def test_saved_bytes_are_those_of_autograd() -> None:
    """y = sum((x W)^2): autograd keeps x and x W, and W is a weight that is there anyway."""
    network = torch.nn.Linear(3, 5, bias=False)
    x = torch.randn(7, 3)
    assert kept_bytes(lambda: (network(x) ** 2).sum(), network) == 4 * (7 * 3 + 7 * 5)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_on_fake_tensors_are_those_of_a_real_pass(bf16: bool) -> None:
    """Of a batch of 5, of which batches of 1 and 2 tell."""
    denoiser, config = Denoiser(stock_network(), Cosine(), PARAMETERIZATIONS["v"]), TrainConfig(1, 5, 1e-3)
    z, u = torch.randn(5, 1, 8, 8), torch.rand(5, dtype=torch.float64)

    def passes() -> None:
        with autocast(torch.device("cpu"), "bf16" if bf16 else "float32"):
            denoising_loss(denoiser, z, z, u, weighting=WEIGHTINGS["truncated_snr"]).mean().backward()

    real = kept_bytes(passes, denoiser.network)
    assert activation_bytes(denoiser, (1, 8, 8), 5, config, bf16=bf16) == pytest.approx(real, rel=0.05)


SD_15: dict[str, Any] = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
"""The published configurations of Stable Diffusion 1.5 and SDXL, where they are not diffusers' defaults."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count", "whole", "eight_bits", "low_rank"),
    [(SD_15, 859_520_964, 14.4, 9.6, 2.6), (SDXL, 2_567_463_684, 43.0, 28.7, 7.7)],
    ids=["SD 1.5", "SDXL"],
)
def test_what_known_models_hold(
    config: dict[str, Any], count: int, whole: float, eight_bits: float, low_rank: float
) -> None:
    """GiB without activations beside a teacher in bf16: 18 bytes a weight, 12 with 8 bits, or 2 and the adapters."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    assert sum(each.numel() for each in network.parameters()) == count
    plain = TrainConfig(1, 1, 1e-4)
    of_8_bits, adapted = replace(plain, optimizer="adamw8bit"), replace(plain, lora_rank=64)
    for how, expected in ((plain, whole), (of_8_bits, eight_bits), (adapted, low_rank)):
        held = training_memory(network, how, teachers=1, bf16=True).total / 2**30
        assert held == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_the_counted_bytes_are_those_of_a_training(optimizer: Literal["adamw", "adamw8bit"]) -> None:
    """Weights, gradients, moments and the average of a network that is trained here; the counts of steps left out."""
    config = TrainConfig(1, 1, 1e-3, ema=0.9, optimizer=optimizer)
    network = stock_network()
    held, state = training_memory(network, config, teachers=0, bf16=False), State(network, config)
    for each in state.parameters:
        each.grad = torch.randn_like(each)
    gradients = sum(each.grad.nbytes for each in state.parameters if each.grad is not None)
    state.step(torch.tensor(True), {MAIN: torch.tensor(1.0)})
    tensors = state.checkpoint().tensors.items()
    moments = sum(each.nbytes for name, each in tensors if name.startswith("optimizer.") and not name.endswith(".step"))
    weights, average = (
        sum(each.nbytes for name, each in tensors if name.startswith(group))
        for group in ("network.", "average.module.")
    )
    assert (held.weights, held.gradients, held.moments, held.average) == (weights, gradients, moments, average)


@pytest.mark.usefixtures("known_rates")
def test_a_dry_run_of_ones_own_model_says_whether_it_fits(stock: SaveStock, tmp_path: Path) -> None:
    words = (
        "distill",
        stock(classes=11),
        "--data",
        "digits",
        "--guidance",
        "1:8",
        "--out",
        tmp_path / "out",
        *UNTRAINED,
    )
    large = call(*words, "--dry-run", "--device-memory", 24)
    assert large.exit_code == 0, large.output
    assert "Memory while" in large.output
    assert "fits in 24.0 GiB" in large.output
    lines = large.output.splitlines()
    assert max(map(len, lines[lines.index(next(line for line in lines if line.startswith("out: "))) :])) <= 80
    small = call(*words, "--dry-run", "--device-memory", 0.001).output
    assert "does not fit in 0.001 GiB." in small
    assert "To reduce it: gradient_accumulation_steps" in small
    assert not (tmp_path / "out").exists()
    refused(call(*words, "--device-memory", 24), "--device-memory requires --dry-run")


def test_what_does_not_fit_here_is_not_timed(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progdist.runs.estimate.cost._bytes_of", lambda device: 1000)
    monkeypatch.setattr("progdist.runs.estimate.cost.measure", lambda *arguments: pytest.fail("it was timed"))
    result = call("run", tiny_recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "Not timed on" in result.output
    assert "does not fit" in result.output


@pytest.mark.parametrize("teacher", ["flow", "eps", "guided"])
@pytest.mark.usefixtures("known_rates")
def test_the_estimate_counts_stage_0_as_it_is(stock: SaveStock, tmp_path: Path, teacher: str) -> None:
    """It is no part of a run without one, and takes two evaluations of the teacher where it is guided."""
    folder = stock(FlowMatchEulerDiscreteScheduler() if teacher == "flow" else None, classes=11)
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(folder), "trust": True}}
    settings = (
        "conversion={updates: 5, batch: 4}",
        "distill={chain: [8, 4], updates: 3, batch: 4}",
        "evaluate.samples=10",
    )
    recipe = validated(content, (*settings, *(("conversion.guidance=2",) if teacher == "guided" else ())), "test")
    parts = {part.name: part for part in estimated(recipe).parts}
    assert list(parts) == [*(["converted"] if teacher != "flow" else []), "student-0004", "evaluation"]
    if teacher != "flow":
        asked = {"eps": 20, "guided": 40}[teacher]
        assert (parts["converted"].updates, parts["converted"].frozen_evaluations) == (5, asked)
    assert parts["evaluation"].frozen_evaluations == 10 * (8 + 4 + 4 + 4 + {"flow": 0, "eps": 8, "guided": 24}[teacher])


def test_the_doctor_leaves_the_teacher_as_it_is(stock: SaveStock) -> None:
    """Its trial of the cost trains a copy."""
    from progdist.cli.doctor import TRIAL
    from progdist.runs.estimate.cost import measure

    denoiser = open_teacher(str(stock())).model.denoiser
    before = [parameter.clone() for parameter in denoiser.parameters()]
    measure(denoiser, (1, 8, 8), 2, TRIAL)
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in denoiser.parameters())


@pytest.mark.parametrize("kind", ["convolutions", "teacher", "trained_teacher"])
def test_a_discriminator_is_counted(tiny_recipe: Path, kind: str) -> None:
    """Its weights in four states, by its own count, and more activations than the student alone keeps."""
    settings = ("distill={start: 2, end: 1, batch: 32, updates: 1, method: METHOD}", "distill.precision=float32")
    memories = []
    for method, more in (("progressive", ()), ("adversarial", (f"distill.options={{discriminator: {kind}}}",))):
        recipe = read_recipe(str(tiny_recipe), [each.replace("METHOD", method) for each in settings] + list(more))
        model = untrained(recipe, (1, 8, 8), (), "digits")
        configs = {"student-0001": recipe.student_config(1)}
        memories.append(heaviest_stage(recipe, model, configs, torch.device("cpu"))[1])
    plain, adversarial = memories
    method = METHODS["adversarial"].configured({"discriminator": kind})
    assert method.auxiliaries is not None
    judge = method.auxiliaries(method.options, model.denoiser, torch.zeros(1, 1, 8, 8), {})["discriminator"].network
    trained = sum(each.nbytes for each in judge.parameters() if each.requires_grad)
    assert adversarial.auxiliaries == 4 * trained > 0
    assert plain.auxiliaries == 0
    assert adversarial.activations > plain.activations


@pytest.mark.slow
def test_an_update_with_a_discriminator_is_timed_whole(tiny_recipe: Path) -> None:
    """It takes longer than one without, whatever machine it is."""
    settings = "distill={{start: 2, end: 1, batch: 32, updates: 100, method: {}}}"
    plain, adversarial = (
        estimated(read_recipe(str(tiny_recipe), [settings.format(method)])) for method in ("progressive", "adversarial")
    )
    hours = [{each.name: each.hours or 0.0 for each in run.parts}["student-0001"] for run in (plain, adversarial)]
    assert 0 < hours[0] < hours[1]
