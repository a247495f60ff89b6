"""Teachers from stock diffusers folders: what is inferred, stage 0, the proposed chain, the whole command."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from conftest import SilentCallback, Stock, call, stock_network
from progdist import Cosine, Discrete, RectifiedFlow, UserError, sample
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.loss import WEIGHTINGS
from progdist.distillation.conversion import (
    Clipped,
    Guided,
    conversion_loss,
    converted_form,
    equal_snr,
    error_by_band,
    needs_conversion,
)
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import save
from progdist.models.model import Model
from progdist.recipes.files import read_recipe, validated
from progdist.recipes.from_teacher import divisor_chain
from progdist.runs.estimate import estimate
from progdist.runs.run import open_run


def test_rescaling_is_the_published_one() -> None:
    ours = torch.tensor(Discrete.linear().rescaled().alphas_cumprod, dtype=torch.float64)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert ours[-1] == 0


def test_the_time_of_an_angle_inverts_it() -> None:
    schedule, t = Discrete.linear(), torch.rand(500, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.angles(t)[0]), t, rtol=0, atol=1e-12)
    assert float(schedule.time(torch.tensor([1.5707963267948966], dtype=torch.float64))) == 1


def test_equal_snr_is_equal() -> None:
    ours, theirs = Discrete.linear().rescaled(), Discrete.linear()
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64)
    torch.testing.assert_close(theirs.log_snr(equal_snr(ours, theirs, t)), ours.log_snr(t), rtol=1e-9, atol=1e-9)
    assert float(equal_snr(ours, theirs, torch.ones(1).double())) == 1


def test_exact_denoisers_of_both_schedules_match() -> None:
    """At equal SNR the posterior mean is the same function: no loss, in any band, wherever the teacher reaches."""
    teacher = Gaussian(Discrete.linear(), torch.tensor(0.3), 0.5)
    student = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.3), 0.5)
    x, eps, u = 0.3 + 0.5 * torch.randn(64, 3), torch.randn(64, 3), torch.linspace(0.05, 0.95, 64).double()
    loss = conversion_loss(student, teacher, x, eps, u, weighting=WEIGHTINGS["constant"])
    assert float(loss.max()) < 1e-6  # float32
    bands = error_by_band(student, teacher, x, eps, u)
    assert max(bands.values()) < 1e-4
    wrong = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.4), 0.5)
    assert max(error_by_band(wrong, teacher, x, eps, u).values()) > 0.05


def test_guidance_and_clipping(tiny_model: Callable[..., Any]) -> None:
    denoiser = tiny_model(classes=4)
    z, t = torch.randn(3, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    labels, none = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    with_class, free = (denoiser(z, t, class_labels=given) for given in (labels, none))
    guided = Guided(denoiser, 3.0, 3)
    torch.testing.assert_close(guided(z, t, class_labels=labels), 3 * with_class - 2 * free, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Guided(denoiser, 1.0, 3)(z, t, class_labels=labels), with_class)
    clipped = Clipped(guided)(z, t, class_labels=labels)
    torch.testing.assert_close(clipped, guided(z, t, class_labels=labels).clamp(-1, 1))
    assert clipped.abs().max() <= 1


@pytest.mark.parametrize(
    ("timesteps", "target", "start", "chain"),
    [
        (1000, 4, 256, [200, 40, 8, 4]),
        (1000, 1, 1000, [1000, 200, 40, 8, 4, 2, 1]),
        (1024, 4, 256, [256, 128, 64, 32, 16, 8, 4]),
        (1000, 8, 100, [40, 8]),
    ],
)
def test_proposed_chains(timesteps: int, target: int, start: int, chain: list[int]) -> None:
    assert divisor_chain(timesteps, target, start) == chain
    assert all(a % b == 0 for a, b in pairwise(chain))
    assert all(timesteps % count == 0 for count in chain)


@pytest.mark.parametrize(("target", "start", "says"), [(3, 256, "choose one of 1, 2, 4, 5"), (4, 4, "at least 8")])
def test_no_chain(target: int, start: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        divisor_chain(1000, target, start)


SCHEDULERS = {
    "linear": DDPMScheduler(),
    "scaled": DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine v": DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "sample": DDPMScheduler(prediction_type="sample", num_train_timesteps=500),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_stock_teacher_is_sampled_as_stock_samples_it(stock: Stock, name: str) -> None:
    """Our DDIM with what was inferred equals stock DDIM on the trailing grid, clipped or not as the folder says."""
    scheduler = SCHEDULERS[name]
    teacher = read_teacher(str(stock(scheduler)))
    noise = torch.randn(4, 1, 8, 8)
    ours = sample(teacher.limited(teacher.model.denoiser), noise, 20)
    theirs = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)
    theirs.set_timesteps(20)  # pyright: ignore
    z, network = noise, stock_network()
    with torch.no_grad():
        for timestep in theirs.timesteps:  # pyright: ignore
            output = network(z, timestep).sample
            z = theirs.step(output, timestep, z, use_clipped_model_output=True).prev_sample  # pyright: ignore
    assert teacher.clip == 1
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-4)


def test_a_flow_is_a_rectified_flow(stock: Stock) -> None:
    teacher = read_teacher(str(stock(FlowMatchEulerDiscreteScheduler(), classes=10)))
    assert teacher.model.denoiser.schedule == RectifiedFlow()
    assert teacher.model.denoiser.offset == 0
    assert len(teacher.model.classes) == 10
    assert teacher.clip is None
    assert not needs_conversion(teacher.model.denoiser)


def test_what_needs_stage_0(stock: Stock, tiny_model: Callable[..., Any]) -> None:
    teacher = read_teacher(str(stock())).model.denoiser
    assert needs_conversion(teacher)
    form = converted_form(teacher)
    assert not needs_conversion(form)
    assert float(form.schedule.alpha(torch.ones(()).double())) == 0
    assert form.timesteps == 1000
    assert not needs_conversion(tiny_model(Cosine()))


def break_bin(place: Path) -> None:
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_bin, "is a pickle"),
        (lambda place: (place / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "lacks unet/diffusion"),
        (lambda place: (place / "unet" / "config.json").unlink(), "lacks unet/config.json"),
        (lambda place: (place / "scheduler" / "scheduler_config.json").unlink(), "lacks scheduler/scheduler_config"),
        (lambda place: (place / "model_index.json").unlink(), "no model_index.json"),
        (lambda place: (place / "model_index.json").write_text('{"transformer": ["diffusers", "X"]}'), "UNet2DModel"),
        (lambda place: (place / "model_index.json").write_text("{"), "cannot be read as JSON"),
        (
            lambda place: (place / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Nobody"}'),
            "has scheduler Nobody",
        ),
        (
            lambda place: (place / "scheduler" / "scheduler_config.json").write_text(
                '{"_class_name": "DDPMScheduler", "prediction_type": "score"}'
            ),
            "prediction_type 'score'",
        ),
        (
            lambda place: (place / "scheduler" / "scheduler_config.json").write_text(
                '{"_class_name": "DDPMScheduler", "beta_schedule": "quadratic"}'
            ),
            "scheduler is damaged",
        ),
        (
            lambda place: (place / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"),
            "its weights are 2 bytes",
        ),
    ],
)
def test_damaged_folders_are_one_line(stock: Stock, damage: Callable[[Path], None], says: str) -> None:
    place = stock()
    damage(place)
    result = call("distill", place, "--data", "digits", "--out", place.parent / "out")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (place.parent / "out").exists()


QUICK = ("--updates", 2, "--batch", 8, "--start", 40, "--set", "evaluate.samples=16", "--set", "evaluate.resamples=2")
UNTRAINED = ("--set", "teacher.trust=true")  # its readings are noise: nothing can be told of them


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eps", "flow", "guided"])
def test_the_whole_command(stock: Stock, tmp_path: Path, kind: str) -> None:
    flow = FlowMatchEulerDiscreteScheduler() if kind == "flow" else None
    place = stock(flow, classes=None if kind == "eps" else 11)
    more = ("--guidance", 2) if kind == "guided" else ()
    words = ("distill", place, "--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED, *more)
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "chain: 40 -> 8 -> 4" in result.output
    told = json.loads((tmp_path / "out" / "student-0004" / "progdist.json").read_text())
    assert (told["steps"], told["lineage"]) == ([4], [40, 8])
    records = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
    assert [(r["model"], r["steps"]) for r in records[:2]] == [("given", 40), ("teacher", 40)]
    assert records[0]["rmse"] == 0
    matched = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("match" in record for record in matched) == (kind != "flow")
    scheduler = json.loads((tmp_path / "out" / "student-0004" / "scheduler" / "scheduler_config.json").read_text())
    expected = "FlowMatchEulerDiscreteScheduler" if kind == "flow" else "DDIMScheduler"
    assert scheduler["_class_name"] == expected
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert call(*words).exit_code == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "digits", "--guidance", 2), "guidance needs a class"),
        (("--data", "digits", "--steps", 3), "does not divide"),
        (
            ("--data", "digits", "--set", "distill.chain=[6, 3]", "--set", "distill.stages={}"),
            "do not divide the teacher's 1000",
        ),
        (("--data", "digits", "--set", "network={width: 8, multipliers: [1]}"), "give either network"),
        (("--data", "digits", "--set", "parameterization=x"), "those of teacher.model"),
        (("--data", "nothing"), "unknown"),
    ],
)
def test_mistakes_are_one_line(stock: Stock, tmp_path: Path, words: tuple[object, ...], says: str) -> None:
    result = call("distill", stock(), *words, "--out", tmp_path / "out", *QUICK, *UNTRAINED)
    assert result.exit_code == 2, result.output
    assert says in result.stderr


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = call("distill", tmp_path / "nothing", "--data", "digits")
    assert result.exit_code == 2
    assert "is no folder" in result.stderr


def test_a_name_on_the_hub(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = stock(), {}

    def download(name: str, **how: object) -> str:
        asked.update(name=name, **how)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read_teacher("hub:somebody/their-model@v2").model.denoiser.timesteps == 1000
    assert (asked["name"], asked["revision"]) == ("somebody/their-model", "v2")
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["allow_patterns"])  # no pickles
    assert "text_encoder/*.safetensors" not in asked["allow_patterns"]

    def refuse(name: str, **how: object) -> str:
        raise OSError("404 Client Error: not found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    result = call("doctor", "hub:somebody/nothing")
    assert result.exit_code == 2
    assert "cannot be fetched (404 Client Error" in result.stderr
    asked.clear()
    result = call("doctor", "my-models/mistyped")  # a folder's name is never asked for on the hub
    assert result.exit_code == 2
    assert "hub:my-models/mistyped if you mean" in result.stderr
    assert asked == {}


def test_every_field_of_stage_0(stock: Stock) -> None:
    """match.* changes the plan of the teacher's stage."""
    from progdist.recipes.schema import Conversion, train_config

    base = train_config(Conversion())
    changes = {
        "updates": 9, "batch": 16, "learning_rate": 0.5, "warmup": 9, "lr_scheduler": "constant", "weight_decay": 0.1,
        "max_grad_norm": 0.5, "ema": 0.5, "gradient_accumulation_steps": 2, "precision": "bf16", "checkpoint_every": 77,
        "gradient_checkpointing": True, "lora_rank": 3, "max_skipped_updates": 2,
    }  # fmt: skip
    for field, value in changes.items():
        assert getattr(train_config(Conversion.model_validate({field: value})), field) == value != getattr(base, field)
    assert set(changes) == set(Conversion.model_fields) - {"weighting", "guidance", "null_class"}


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_sample_range": 0.5},
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    ],
    ids=["range", "thresholding"],
)
def test_a_stock_samplers_limits_are_kept(stock: Stock, settings: dict[str, Any]) -> None:
    """Clipping to another range and dynamic thresholding, against stock DDIM."""
    scheduler = DDIMScheduler(prediction_type="sample", timestep_spacing="trailing", **settings)
    teacher = read_teacher(str(stock(scheduler)))
    noise, network = torch.randn(4, 1, 8, 8), stock_network()
    ours = sample(teacher.limited(teacher.model.denoiser), noise, 10)
    theirs: Any = DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=True)
    theirs.set_timesteps(10)
    z = noise
    with torch.no_grad():
        for timestep in theirs.timesteps:
            z = theirs.step(network(z, timestep).sample, timestep, z, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-4)
    assert not torch.allclose(ours, sample(teacher.model.denoiser, noise, 10), atol=1e-2)


@pytest.mark.slow
def test_limits_are_learned_where_there_is_no_stage_0(stock: Stock, tmp_path: Path) -> None:
    """A zero-SNR teacher of x is halved as it is: its first student learns from clipped predictions."""
    scheduler = DDIMScheduler(prediction_type="sample", rescale_betas_zero_snr=True, clip_sample_range=0.25)
    place = stock(scheduler)
    result = call("distill", place, "--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED)
    assert result.exit_code == 0, result.output
    run = open_run(read_recipe(str(tmp_path / "out" / "recipe.yaml")), tmp_path / "out", SilentCallback())
    teacher = run.stages.teacher()
    assert teacher.training["updates"] == 0
    z, t = torch.randn(4, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    found = run.stages.as_sampled(teacher)(z, t)
    assert float(found.abs().max()) <= 0.25 < float(teacher.denoiser(z, t).abs().max())
    records = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
    assert records[0]["quality"][0]["frechet"] == records[1]["quality"][0]["frechet"]  # given and teacher are one


@pytest.mark.slow
@pytest.mark.parametrize("data", [False, True])
def test_a_zero_snr_teacher_is_taken(stock: Stock, data: bool) -> None:
    place = stock(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    result = call("doctor", place, *(("--data", "digits") if data else ()))
    assert "unknown" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "it can be halved as it is" in result.output
    assert not data or "read as" in result.output


@pytest.mark.slow
def test_a_distilled_teacher_starts_at_its_own_steps(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    save(Model(tiny_model(), (8,), (16,)), tmp_path / "student")
    result = call("distill", tmp_path / "student", "--data", "digits", "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    assert "chain: 8 -> 4" in result.output
    told = json.loads((tmp_path / "out" / "student-0004" / "progdist.json").read_text())
    assert told["lineage"] == [16, 8]
    for more, says in (
        (("--steps", 3), "distilled for 8 steps"),
        (("--set", "distill.chain=[16, 8, 4]"), "distilled for 8 steps and the chain starts at 16"),
        (("--guidance", 2), "a distilled teacher knows only its own"),
    ):
        result = call("distill", tmp_path / "student", "--data", "digits", "--out", tmp_path / "no", *QUICK, *more)
        assert result.exit_code == 2, result.output
        assert says in result.stderr
    assert "8 -> 4" in call("doctor", tmp_path / "student").output


@pytest.mark.slow
def test_a_learned_variance_is_sliced_off(stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's folder is a stock pipeline that samples, though the teacher's network had twice the channels."""
    place = stock(DDPMScheduler(variance_type="learned_range"))
    wide = stock_network()
    wide.conv_out = torch.nn.Conv2d(wide.conv_out.in_channels, 2, 3, padding=1)
    wide.register_to_config(out_channels=2)
    wide.save_pretrained(place / "unet")
    result = call("distill", place, "--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED)
    assert result.exit_code == 0, result.output
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out" / "student-0004")
    pipeline.set_progress_bar_config(disable=True)
    made: Any = pipeline(batch_size=2, num_inference_steps=4, output_type="np")
    assert made.images.shape == (2, 8, 8, 1)
    teacher, z = read_teacher(str(place)), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(teacher.model.denoiser.network(z, 5).sample, wide(z, 5).sample[:, :1])


@pytest.mark.slow
def test_guidance_never_takes_a_real_class_for_none(stock: Stock, tmp_path: Path) -> None:
    place, words = stock(classes=10), ("--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED)
    result = call("distill", place, *words, "--guidance", 2)
    assert result.exit_code == 2, result.output
    assert "name it with --set match.null_class=N" in result.stderr
    assert not (tmp_path / "out").exists()
    assert call("distill", place, *words, "--guidance", 2, "--set", "match.null_class=9").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--guidance", 0), "match.guidance: Input should be greater than 0"),
        (("--set", "distill.start=8"), "start has no effect beside chain"),
        (("--set", "distill.substeps=4"), "substeps has no effect beside chain"),
        (("--set", "teacher.learning_rate=0.1"), "teacher.learning_rate is of a teacher that is trained"),
        (("--set", "evaluate.samples=1"), "evaluate.samples"),
    ],
)
def test_what_has_no_effect_is_refused(stock: Stock, tmp_path: Path, words: tuple[object, ...], says: str) -> None:
    result = call("distill", stock(), "--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED, *words)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_folder_of_any_name(stock: Stock, tmp_path: Path) -> None:
    result = call("distill", stock(), "--data", "digits", "--out", tmp_path / "my run", *QUICK, *UNTRAINED)
    assert result.exit_code == 0, result.output
    assert read_recipe(str(tmp_path / "my run" / "recipe.yaml")).name == "my-run"


def test_an_offset_of_our_own_folder_is_kept(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    save(Model(tiny_model()), tmp_path / "model")
    assert read_teacher(str(tmp_path / "model"), 0.0).model.denoiser.offset == 0
    assert "timestep = 1024 t - 0" in call("doctor", tmp_path / "model", "--offset", 0).output


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"use_dynamic_shifting": True}, "shifts its times by the size"), ({"shift": 0.0}, "damaged")],
)
def test_a_flow_that_cannot_be_taken(stock: Stock, settings: dict[str, Any], says: str) -> None:
    place = stock(FlowMatchEulerDiscreteScheduler())
    config = place / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(UserError, match=says):
        read_teacher(str(place))


def test_a_shifted_flow_is_sampled_as_stock_samples_it(stock: Stock) -> None:
    place = stock(FlowMatchEulerDiscreteScheduler(shift=3.0))
    teacher = read_teacher(str(place))
    assert teacher.model.denoiser.schedule == RectifiedFlow(3.0)
    theirs: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(place, subfolder="scheduler")
    theirs.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    noise, network = torch.randn(3, 1, 8, 8), stock_network()
    z = noise
    with torch.no_grad():
        for timestep in theirs.timesteps:
            z = theirs.step(network(z, timestep).sample, timestep, z).prev_sample
    torch.testing.assert_close(sample(teacher.model.denoiser, noise, 8), z, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "eps", "guided"])
def test_the_estimate_counts_stage_0_as_it_is(stock: Stock, tmp_path: Path, kind: str) -> None:
    """No updates where there is no stage 0, two evaluations of the teacher where it is guided."""
    place = stock(FlowMatchEulerDiscreteScheduler() if kind == "flow" else None, classes=11)
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(place)}}
    settings = ("match={updates: 5, batch: 4}", "distill={chain: [8, 4], updates: 3, batch: 4}", "evaluate.samples=10")
    recipe = validated(content, (*settings, *(("match.guidance=2",) if kind == "guided" else ())), "test")
    parts = {part.name: part for part in estimate(recipe).parts}
    assert parts["teacher"].updates == (0 if kind == "flow" else 5)
    assert parts["teacher"].frozen_evaluations == {"flow": 0, "eps": 20, "guided": 40}[kind]
    assert parts["evaluation"].frozen_evaluations == 10 * (8 + 4 + 4 + {"flow": 8, "eps": 8, "guided": 16}[kind])
