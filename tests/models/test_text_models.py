"""Text-to-image pipelines: a student with a guidance dial, and the stock pipeline that samples it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

import progdist
from progdist import UserError
from progdist._utils.files import read_tensors
from progdist.diffusion.sampler import ddim_update, sample
from progdist.distillation.conversion import converted_form
from progdist.distillation.guidance import Guided
from progdist.evaluation.generate import sampling_noise
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import load, save
from progdist.models.model import Model
from progdist.models.text.conditions import CaptionConditions, prompt_conditions
from progdist.models.text.pipeline import Guidance, guidance_input, network_arguments, with_guidance_input
from progdist.models.text.stock import guidance_embedding
from support.commands import call
from support.text import PROMPTS, WRITERS, write_sd, write_sdxl

KINDS = pytest.mark.parametrize("kind", WRITERS)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, as stock code writes it."""
    return {kind: write(tmp_path_factory.mktemp("pipelines") / kind) for kind, write in WRITERS.items()}


def student(place: Path, guidance: Guidance | None = (1.0, 14.0), steps: int = 4) -> Model:
    """A student of the teacher in a folder, whose dial does something."""
    teacher = read_teacher(str(place)).model
    form, text = converted_form(teacher.denoiser), teacher.text
    assert text is not None
    network = form.network
    if isinstance(guidance, tuple):
        network = with_guidance_input(network)
        nn.init.normal_(network.get_parameter("time_embedding.cond_proj.weight"), std=0.3)
    denoiser = form.with_parts(network=network, arguments=network_arguments(network))
    return replace(teacher, denoiser=denoiser, steps=(steps,), text=text.guided(guidance, None))


def stock(place: Path, kind: str) -> Any:  # noqa: ANN401
    """By its class name alone."""
    pipeline = getattr(diffusers, kind).from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(model: Model, noise: Tensor, steps: int, conditions: CaptionConditions) -> Tensor:
    condition: dict[str, Any] = {**conditions({"labels": torch.arange(len(noise))})}
    return sample(model.denoiser, noise, steps, **condition)


@KINDS
def test_the_stock_pipeline_samples_what_we_sample(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind]), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock(tmp_path / "student", kind)
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    noise = sampling_noise(model, len(PROMPTS), 0)
    found, conditions = [], prompt_conditions(model, PROMPTS, None)
    for steps in (1, 2, 4, 8):
        for guidance in (1.0, 3.0, 7.5, 14.0):
            calls.clear()
            theirs = pipeline(
                PROMPTS,
                guidance_scale=guidance,
                num_inference_steps=steps,
                latents=noise,
                output_type="latent",
                negative_prompt=["blurred"] * len(PROMPTS),
            ).images
            assert calls == [len(PROMPTS)] * steps
            ours = latents(model, noise, steps, conditions.at(guidance))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            found.append(ours)
    assert min(float((a - b).abs().max()) for a, b in pairwise(found)) > 0.01  # each is another


@KINDS
def test_the_command_makes_the_stock_pipelines_images(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind]), tmp_path / "student")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", *words, "--guidance", 3, "-n", 4, "--out", made)
    assert result.exit_code == 0, result.output
    model, pipeline = load(tmp_path / "student"), stock(tmp_path / "student", kind)
    noise = sampling_noise(model, 4, 0)
    theirs = pipeline(PROMPTS, guidance_scale=3.0, num_inference_steps=4, latents=noise, output_type="np").images
    ours = read_tensors(made)["images"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.clip(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)


@KINDS
def test_a_loaded_model_takes_prompts(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind]), tmp_path / "student")
    denoiser, pipeline = progdist.load(tmp_path / "student"), stock(tmp_path / "student", kind)
    noise = torch.randn(4, 4, 4, 4)
    ours = progdist.sample(denoiser, noise, 4, prompt=PROMPTS[:2], guidance=3.0)
    prompts = [*PROMPTS[:2], *PROMPTS[:2]]
    theirs = pipeline(prompts, guidance_scale=3.0, num_inference_steps=4, latents=noise, output_type="pt").images
    torch.testing.assert_close(ours.clamp(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)
    progdist.save(denoiser, tmp_path / "again", steps=[4])
    again = progdist.load(tmp_path / "again")
    torch.testing.assert_close(progdist.sample(again, noise, 4, prompt=PROMPTS[:2], guidance=3.0), ours)
    with pytest.raises(UserError, match="say what to make"):
        progdist.sample(denoiser, noise, 4, guidance=3.0)


@KINDS
def test_all_other_files_are_copied_byte_for_byte(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind]), tmp_path / "student")
    files = [path.relative_to(pipelines[kind]) for path in pipelines[kind].rglob("*") if path.is_file()]
    changed = {
        str(path)
        for path in files
        if (pipelines[kind] / path).read_bytes() != (tmp_path / "student" / path).read_bytes()
    }
    own = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}
    assert changed == own | ({"model_index.json"} if kind == "StableDiffusionXLPipeline" else set())
    scheduler = stock(tmp_path / "student", kind).scheduler
    assert scheduler.config["steps_offset"] == 1
    assert scheduler.config["timestep_spacing"] == "trailing"


def test_any_pipeline_finds_the_class_by_itself(pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines["StableDiffusionPipeline"]), tmp_path / "student")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "student")).__name__ == "StableDiffusionPipeline"


@KINDS
def test_a_dial_that_was_not_taught_changes_nothing(kind: str, pipelines: dict[str, Path]) -> None:
    teacher = read_teacher(str(pipelines[kind])).model
    network = with_guidance_input(teacher.denoiser.network)
    assert guidance_input(network) == 256
    assert guidance_input(teacher.denoiser.network) is None
    student = teacher.denoiser.with_parts(network=network, arguments=network_arguments(network))
    condition = prompt_conditions(teacher, PROMPTS, None)({"labels": torch.arange(4)})
    z, t = torch.randn(4, 4, 4, 4), torch.tensor(0.6, dtype=torch.float64)
    guidance = torch.tensor([1.0, 3.0, 7.5, 14.0], dtype=torch.float64)
    torch.testing.assert_close(student(z, t, guidance=guidance, **condition), teacher.denoiser(z, t, **condition))


@KINDS
def test_the_guided_teacher_is_the_stock_pipeline(kind: str, pipelines: dict[str, Path]) -> None:
    """One step of DDIM from the same latents: the stock pipeline mixes predictions of eps, and we denoised data."""
    teacher, guidance = read_teacher(str(pipelines[kind])).model, 7.5
    assert teacher.text is not None
    pipeline = stock(pipelines[kind], kind)
    none = teacher.text.encoder().unconditional("a smudge")
    condition = prompt_conditions(teacher, PROMPTS, None)({"labels": torch.arange(4)})
    seen: dict[str, Tensor] = {}
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    z = torch.randn(4, 4, 4, 4)

    def keep(pipe: object, step: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen[str(step)] = given["latents"]
        return given

    pipeline(
        PROMPTS,
        negative_prompt=["a smudge"] * 4,
        guidance_scale=guidance,
        num_inference_steps=2,
        latents=z,
        output_type="latent",
        callback_on_step_end=keep,
    )
    scales = torch.full((4,), guidance, dtype=torch.float64)
    for guided, more in (
        (Guided(teacher.denoiser, none, guidance), {}),
        (Guided(teacher.denoiser, none), {"guidance": scales}),
    ):
        t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
        x = guided(z, t, **condition, **more)
        torch.testing.assert_close(ddim_update(guided.schedule, z, x, t, s), seen["0"], rtol=1e-4, atol=1e-4)


def test_each_example_has_its_own_guidance(pipelines: dict[str, Path]) -> None:
    teacher = read_teacher(str(pipelines["StableDiffusionPipeline"])).model
    assert teacher.text is not None
    condition = prompt_conditions(teacher, PROMPTS, None)({"labels": torch.arange(4)})
    none = teacher.text.encoder().unconditional(None)
    z, t = torch.randn(4, 4, 4, 4), torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        together = Guided(teacher.denoiser, none)(z, t, **condition, guidance=scales)
        for row, scale in enumerate(scales.tolist()):
            alone = Guided(teacher.denoiser, none, scale)(z, t, **condition)
            torch.testing.assert_close(together[row], alone[row])


def test_the_embedding_is_that_of_the_stock_pipeline() -> None:
    guidance = [1.0, 1.3, 7.5, 14.0]
    theirs = [
        StableDiffusionPipeline.get_guidance_scale_embedding(
            None,  # pyright: ignore[reportArgumentType]
            torch.tensor(scale - 1).repeat(1),
            embedding_dim=256,
        )
        for scale in guidance
    ]
    assert torch.equal(guidance_embedding(torch.tensor(guidance, dtype=torch.float64), 256), torch.cat(theirs))


@pytest.mark.parametrize("guidance", [3.0, None])
def test_a_student_of_fixed_guidance_is_sampled_at_scale_one(
    guidance: float | None, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    kind = "StableDiffusionPipeline"
    save(student(pipelines[kind], guidance), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock(tmp_path / "student", kind)
    assert model.text is not None
    assert model.text.guidance == guidance
    noise = sampling_noise(model, 4, 0)
    theirs = pipeline(PROMPTS, guidance_scale=1.0, num_inference_steps=4, latents=noise, output_type="latent").images
    ours = latents(model, noise, 4, prompt_conditions(model, PROMPTS, None))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="guidance"):
        prompt_conditions(model, PROMPTS, 2.0)


def without(part: str) -> Callable[[Path], None]:
    return lambda place: shutil.rmtree(place / part)


def pickled(place: Path) -> None:
    (place / "text_encoder" / "model.safetensors").rename(place / "text_encoder" / "pytorch_model.bin")


def another_pipeline(place: Path) -> None:
    index = place / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"))


def elsewhere(place: Path) -> None:
    index = place / "model_index.json"
    index.write_text(index.read_text().replace('"tokenizer"', '"../tokenizer"'))


def huge(place: Path) -> None:
    config = place / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 32', '"intermediate_size": 60000'))


def damaged(place: Path) -> None:
    (place / "tokenizer" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("text_encoder"), "lacks text_encoder/config.json"),
        (without("tokenizer"), "lacks tokenizer/"),
        (pickled, "is a pickle"),
        (another_pipeline, "StableDiffusionInpaintPipeline"),
        (elsewhere, "names the part '../tokenizer'"),
        (huge, "describes"),
        (damaged, "is damaged"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    place = write_sd(tmp_path / "sd")
    damage(place)
    with pytest.raises(UserError, match=said) as refused:
        text = read_teacher(str(place)).model.text
        assert text is not None
        text.encoder()
    assert "\n" not in str(refused.value)


def test_a_network_of_more_than_latents_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines["StableDiffusionPipeline"]), tmp_path / "student")
    (tmp_path / "student" / "progdist.json").unlink()
    with pytest.raises(UserError, match="takes a guidance scale already"):
        read_teacher(str(tmp_path / "student"))


def test_options_of_text_are_refused_elsewhere(
    pipelines: dict[str, Path], tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    save(Model(tiny_model(), steps=(4,)), tmp_path / "plain")
    assert "text-conditional" in call("sample", tmp_path / "plain", "--prompt", "a cat").stderr
    assert "takes no guidance scale" in call("sample", tmp_path / "plain", "--guidance", 2).stderr
    with pytest.raises(UserError, match="text-conditional"):
        progdist.sample(tiny_model(), torch.randn(1, 1, 8, 8), 1, prompt="a cat")
    save(student(pipelines["StableDiffusionPipeline"]), tmp_path / "text")
    assert "--prompt" in call("sample", tmp_path / "text").stderr
    assert "label" in call("sample", tmp_path / "text", "--prompt", "an eight", "--label", 0).stderr
    far = call("sample", tmp_path / "text", "--prompt", "an eight", "--guidance", 20, "--out", tmp_path / "far.png")
    assert "guidance of 1 to 14, not 20" in far.output


def test_the_empty_prompt_of_sdxl(tmp_path: Path) -> None:
    """Zeros where the pipeline says so, the embedding of nothing where it does not."""
    place = write_sdxl(tmp_path / "xl")
    for zeros in (True, False):
        index = place / "model_index.json"
        index.write_text(index.read_text().replace(str(not zeros).lower(), str(zeros).lower()))
        text = read_teacher(str(place)).model.text
        assert text is not None
        assert all(bool(rows.any()) != zeros for rows in text.encoder().unconditional(None).values())
        assert all(rows.any() for rows in text.encoder().unconditional("a smudge").values())


@pytest.mark.parametrize(
    ("guidance", "negative", "said"),
    [
        ((1.0, 8.0), None, "from 1 to 8, taken in:"),
        ((1.0, 8.0), "a smudge", 'from 1 to 8, taken in away from "a smudge":'),
        (3.0, "a smudge", '`guidance_scale=1`: a guidance scale of 3 is taken in away from "a smudge"'),
        (None, None, "`guidance_scale=1`: no guidance is taken in"),
    ],
)
def test_the_card_says_how_to_guide(
    guidance: Guidance | None, negative: str | None, said: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = student(pipelines["StableDiffusionPipeline"], guidance)
    assert model.text is not None
    save(replace(model, text=model.text.guided(guidance, negative), steps=(2,)), tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert said in card
    assert "pipeline_tag: text-to-image" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(tmp_path / "student")))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["images"][0].size == (8, 8)
    kept = load(tmp_path / "student").text
    assert kept is not None
    assert (kept.guidance, kept.negative) == (guidance, negative)
