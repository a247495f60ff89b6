"""Stock pipelines of many families, distilled on their own samples: one test for all.

Each is watched, guided by 3, distilled to two steps from a file of prompts, and its student's folder is sampled by
diffusers alone.
"""

import json
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor

from progdist import UserError
from progdist.cli.doctor import Opening, examine
from progdist.data.tables import Columns
from progdist.diffusion.sampler import sample
from progdist.models.model import Model
from progdist.models.pipeline_autoencoder import pictures
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.recipes.files import override, read_recipe
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.run import Run, open_run
from progdist.students.lora_export import export_lora
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.teachers.pipeline import study
from support.commands import SilentCallback, call
from support.tiny_pipelines import CALLS, build

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers tells of its deprecated classes and arguments

FAMILIES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLPipeline/Euler", "PixArtSigmaPipeline",
    "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline", "LTXPipeline", "CogVideoXPipeline",
    "HunyuanVideoPipeline", "SanaPipeline", "ZImagePipeline", "QwenImagePipeline", "Lumina2Pipeline",
    "StableAudioPipeline",
)  # fmt: skip
PROMPTS = ("a cat", "a red house", "two dogs in the rain")
OWN = ("guidance_scale", "true_cfg_scale", "output_type")  # what the tests choose themselves


def arguments_of(name: str) -> dict[str, Any]:
    return {key: value for key, value in CALLS[name].items() if key not in OWN}


def tiny_run(
    name: str,
    folder: Path,
    out: Path,
    callback: Any = None,  # noqa: ANN401
    *settings: str,
    lora: int | None = None,
) -> Run:
    """The run that `progdist distill FOLDER --prompts FILE --guidance 3 --steps 2` makes, of a few updates."""
    arguments = arguments_of(name)
    prompts = folder.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS))
    teacher = open_teacher(str(folder), call=arguments)
    guided = not teacher.model.takes_guidance
    request = Request(
        str(folder), "teacher:4", "tiny", 2, call=arguments, prompts=str(prompts), start=4, updates=2, batch=2,
        guidance=3.0 if guided else None, lora=lora,
    )  # fmt: skip
    short = ["evaluate.samples=2", "evaluate.resamples=2", "data.steps=2", *["conversion.updates=2"] * guided]
    recipe = override(recipe_for_teacher(teacher, request), [*short, *settings])
    return open_run(recipe, out, callback or SilentCallback(), teacher=teacher)


def stock_samples(pipeline: Any, prompts: tuple[str, ...], steps: int, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """(noise, latents) of a stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []
    step = pipeline.scheduler.step

    def kept(output: Tensor, timestep: Any, latents: Tensor, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
        result = step(output, timestep, latents, *rest, **more)
        seen.extend([latents.clone(), (result[0] if isinstance(result, tuple) else result.prev_sample).clone()])
        return result

    kept.__signature__ = signature(step)  # which pipelines look at
    pipeline.scheduler.step = kept
    pipeline(list(prompts), num_inference_steps=steps, generator=torch.Generator().manual_seed(5), **named)
    return seen[0] / float(getattr(pipeline.scheduler, "init_noise_sigma", 1.0)), seen[-1]


def own_samples(model: Model, noise: Tensor, prompts: tuple[str, ...], steps: int) -> Tensor:
    condition = model.conditions(None, prompts)({"labels": torch.arange(len(prompts))})
    with torch.no_grad():
        return sample(model.denoiser, noise, steps, method="ddim", clip=False, generator=None, **condition)


def assert_samples_alike(name: str, student: Model, pipeline: Any) -> Tensor:  # noqa: ANN401
    """A stock pipeline makes of the same noise and prompts in two steps what the student makes: these latents."""
    assert isinstance(student.conditioning, PipelinePrompts)
    watched, prompts = student.conditioning.watched, ("a cat in the rain", "a house")
    scale = {watched.scale[0]: student.scale(None)} if watched.scale else {}
    noise, latents = stock_samples(pipeline, prompts, 2, **arguments_of(name), **{**watched.off, **scale})
    own = own_samples(student, noise, prompts, 2)
    assert float((own - latents).abs().max()) <= 1e-4 * float(latents.abs().max())
    return latents


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_is_distilled_on_its_own_samples_and_sampled_by_stock_diffusers(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "teacher")
    tiny_run(name, folder, tmp_path / "run").run()
    place = tmp_path / "run" / "student-0002"
    student = load(place)
    assert isinstance(student.conditioning, PipelinePrompts)
    assert student.lineage == (4,)
    latents = assert_samples_alike(name, student, DiffusionPipeline.from_pretrained(place))
    assert student.autoencoder is not None
    made = student.autoencoder.decode(latents)
    assert made.ndim == 4
    assert made.isfinite().all()


WITH_LORA = (
    "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline", "LTXPipeline", "CogVideoXPipeline",
    "HunyuanVideoPipeline", "SanaPipeline", "ZImagePipeline", "QwenImagePipeline", "Lumina2Pipeline",
)  # fmt: skip


READ_BACK = ("FluxPipeline", "WanPipeline", "ZImagePipeline", "QwenImagePipeline")
"""Those whose stock pipelines read all layers of ComfyUI's form (docs/lora-formats.md)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_LORA)
def test_a_lora_file_makes_the_student_of_the_teachers_own_pipeline(name: str, tmp_path: Path) -> None:
    """By the scheduler of the student's folder; every layer that was trained is loaded."""
    folder = build(name, tmp_path / "teacher")
    tiny_run(name, folder, tmp_path / "run", None, "distill.learning_rate=0.01", lora=2).run()
    place = tmp_path / "run" / "student-0002"
    student, pipeline = load(place), DiffusionPipeline.from_pretrained(folder)
    assert isinstance(student.conditioning, PipelinePrompts)
    assert student.lora
    part = student.conditioning.part
    plain = getattr(pipeline, part).state_dict()
    merged = student.denoiser.network.state_dict()
    assert any(not torch.equal(value, merged[key]) for key, value in plain.items())
    pipeline.load_lora_weights(place)
    pipeline.scheduler = type(DiffusionPipeline.from_pretrained(place).scheduler).from_pretrained(place / "scheduler")
    trained = {key.removesuffix(".lora_A.weight") for key in student.lora.weights if key.endswith("lora_A.weight")}
    loaded = {key for key, layer in getattr(pipeline, part).named_modules() if isinstance(layer, LoraLayer)}
    assert loaded == trained
    assert_samples_alike(name, student, pipeline)
    if name in READ_BACK:
        export_lora(student, "comfyui", tmp_path / "comfyui.safetensors")
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(tmp_path / "comfyui.safetensors")
        assert_samples_alike(name, student, pipeline)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("WanPipeline", tmp_path_factory.mktemp("wan") / "teacher")


class Killed(SilentCallback):
    """Ends the run at an update of a model's training."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.left = update

    def progress(self, progress: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_the_whole_one(wan: Path, tmp_path: Path) -> None:
    settings = ("conversion.checkpoint_every=1", "distill.checkpoint_every=1")
    tiny_run("WanPipeline", wan, tmp_path / "whole", None, *settings).run()
    for update in (2, 2):
        with pytest.raises(KeyboardInterrupt):
            tiny_run("WanPipeline", wan, tmp_path / "parts", Killed(update), *settings).run()
    tiny_run("WanPipeline", wan, tmp_path / "parts", None, *settings).run()
    whole, parts = (load(tmp_path / run / "student-0002").denoiser.state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.slow
def test_doctor_says_what_was_learned_and_verified(wan: Path) -> None:
    lines = "\n".join(examine(str(wan), None, Columns(), Opening(call=arguments_of("WanPipeline"))))
    assert "WanPipeline, watched for 3 steps" in lines
    assert "latents: hidden_states; time: timestep = 1 t; output: as it is" in lines
    assert "from the prompts: encoder_hidden_states" in lines
    compared = "the network's output, a batch of different times, prompts one at a time, 2 steps, 5 steps"
    assert f"verified: {compared}, within" in lines
    assert "gives its network no guidance scale: --guidance 5 distils that scale" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--call", "frames=9"], "--call frames: a WanPipeline has no such argument: use one of"),
        (["--call", "prompt=a"], "--call prompt has no effect"),
        (["--call", "output_type=latent"], "--call output_type has no effect"),
        (["--call", "height"], "expected name=value, e.g. --call num_frames=25"),
        (["--call", "height=65"], "cannot be run with height=65"),
        (["--offset", "1"], "an offset has no effect"),
    ],
)
def test_arguments_that_do_not_suit_the_pipeline_are_refused(wan: Path, arguments: list[str], message: str) -> None:
    told = call("doctor", wan, *arguments)
    assert told.exit_code == 2
    assert message in " ".join(told.output.split())


def test_only_pipelines_of_prompts_are_watched() -> None:
    stock = Path(__file__).parents[1] / "reference" / "stock_teacher"
    with pytest.raises(UserError, match="only a pipeline that takes a prompt and num_inference_steps can be watched"):
        open_teacher(str(stock), call={"height": 64})


def test_images_are_refused_where_an_example_is_a_video(wan: Path, tmp_path: Path) -> None:
    recipe = tiny_run("WanPipeline", wan, tmp_path / "run").recipe
    content = recipe.data.model_copy(update={"source": "digits", "prompts": None, "steps": None})
    with pytest.raises(UserError, match="cannot encode images here: replace --data by --prompts FILE"):
        open_run(recipe.model_copy(update={"data": content}), tmp_path / "run", SilentCallback())


def test_prompts_that_depend_on_one_another_are_encoded_one_at_a_time_or_refused(tmp_path: Path) -> None:
    """Kandinsky 5 tells its network the positions of the longest prompt's words; Latte fills up without a mask."""
    kandinsky = build("Kandinsky5T2VPipeline", tmp_path / "kandinsky")
    found = study(kandinsky, arguments_of("Kandinsky5T2VPipeline"))
    assert found.verified["prompts one at a time"] <= 1e-4
    latte = build("LattePipeline", tmp_path / "latte")
    with pytest.raises(UserError, match="prompts one at a time differs from the pipeline's own by"):
        study(latte, arguments_of("LattePipeline"))


def test_guidance_that_changes_along_the_steps_is_said(tmp_path: Path) -> None:
    folder = build("Lumina2Pipeline", tmp_path / "teacher")
    plain = study(folder, arguments_of("Lumina2Pipeline"))
    assert plain.pipeline.guiding is not None
    assert plain.pipeline.guiding.exact
    cut = study(folder, {**arguments_of("Lumina2Pipeline"), "cfg_trunc_ratio": 0.5})
    assert cut.pipeline.guiding is not None
    assert not cut.pipeline.guiding.exact
    assert "its guidance does more than mix two predictions alike in each step" in cut.notes[-1]


@pytest.mark.slow
def test_a_record_that_was_changed_is_refused(wan: Path, tmp_path: Path) -> None:
    tiny_run("WanPipeline", wan, tmp_path / "run").run()
    folder = tmp_path / "run" / "student-0002"
    content = json.loads((folder / "progdist.json").read_text())
    record = content["pipeline"]
    for damage in (
        {"arguments": {"of": {}}},
        {"rows": {"encoder_hidden_states": [2**20, 2**20]}},
        {"spacing": float("nan")},
        {"call": {"x=1); print() #": 1}},
        {"guiding": {**record["guiding"], "parameter": "7"}},
        {"guiding": {**record["guiding"], "added": "zzz"}},
    ):
        (folder / "progdist.json").write_text(json.dumps({**content, "pipeline": {**record, **damage}}))
        with pytest.raises(UserError, match="is damaged"):
            load(folder)


def test_two_experts_are_refused(tmp_path: Path) -> None:
    folder = build("WanPipeline/two experts", tmp_path / "teacher")
    with pytest.raises(UserError, match="transformer and transformer_2, which take turns"):
        study(folder, arguments_of("WanPipeline"))


def test_a_part_of_another_library_is_refused(wan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(wan, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for part, expected in {
        "text_encoder": "of diffusers or transformers: code in a folder is never run",
        "transformer": "expected a network, scheduler, tokenizer or processor",
    }.items():
        (folder / "model_index.json").write_text(json.dumps({**index, part: ["my_code", "Encoder"]}))
        with pytest.raises(UserError, match=expected):
            study(folder, arguments_of("WanPipeline"))
    for other in (["diffusers", "DiffusionPipeline"], ["transformers", "Trainer"], ["transformers", "AutoTokenizer"]):
        (folder / "model_index.json").write_text(json.dumps({**index, "tokenizer": other}))
        with pytest.raises(UserError, match="expected a network, scheduler, tokenizer or processor"):
            study(folder, arguments_of("WanPipeline"))
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        study(folder, arguments_of("WanPipeline"))


def first_arguments(scheduler: Any) -> list[Any]:  # noqa: ANN401
    """A list to which every step adds the (output, timestep, sample) that it was given."""
    seen, step = list[Any](), scheduler.step
    scheduler.step = lambda *given, **named: seen.append(given[:3]) or step(*given, **named)
    return seen


def test_a_guided_pipeline_is_guided_as_it_guides_itself(wan: Path, tmp_path: Path) -> None:
    """The teacher's predictions at a scale give what the pipeline gives its own scheduler, also where it rescales."""
    for name in ("WanPipeline", "QwenImagePipeline", "ZImagePipeline"):
        folder = wan if name == "WanPipeline" else build(name, tmp_path / name)
        teacher = open_teacher(str(folder), call=arguments_of(name)).model
        prompts = teacher.conditioning
        assert isinstance(prompts, PipelinePrompts)
        assert prompts.watched.guiding is not None
        scale = {prompts.watched.guiding.parameter: 3.0}
        away = {"negative_prompt": ["", ""]} if name == "QwenImagePipeline" else {}
        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        seen = first_arguments(pipeline.scheduler)
        generator = torch.Generator().manual_seed(0)
        named = {**arguments_of(name), **prompts.watched.off, **scale, **away}
        pipeline(list(PROMPTS[:2]), num_inference_steps=2, generator=generator, **named)
        output, timestep, z = seen[0]
        t = torch.full((2,), float(timestep) / 1000, dtype=torch.float64)
        condition = teacher.conditions(None, PROMPTS[:2])({"labels": torch.arange(2)})
        with torch.no_grad():
            x = prompts.guided(teacher.denoiser, 3.0, torch.device("cpu"))(z, t, **condition)
        sigma = teacher.denoiser.schedule.sigma(t)[0]
        torch.testing.assert_close((z - x) / float(sigma), output.float(), rtol=1e-4, atol=1e-4)


def test_pictures_of_images_videos_and_sounds() -> None:
    class Made:
        pass

    for name, value, shape in (
        ("images", torch.rand(2, 3, 8, 8), (2, 3, 8, 8)),
        ("frames", torch.rand(2, 5, 3, 8, 8), (2, 3, 8, 8)),
        ("audios", torch.randn(2, 1, 4000), (2, 1, 64, 63)),
    ):
        made = Made()
        setattr(made, name, value)
        picture = pictures(made)
        assert picture.shape == shape
        assert picture.abs().max() <= 1
    with pytest.raises(UserError, match="cannot show the result of a pipeline"):
        pictures(Made())


def test_the_recipe_of_a_run_has_the_arguments(wan: Path, tmp_path: Path) -> None:
    run = tiny_run("WanPipeline", wan, tmp_path / "run")
    assert run.recipe.teacher.call == arguments_of("WanPipeline")
    with pytest.raises(UserError, match=r"teacher\.call require teacher\.model"):
        override(read_recipe("digits"), ["teacher.call={height: 8}"])
