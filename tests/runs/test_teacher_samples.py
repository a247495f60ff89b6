"""Runs without a data set: the teacher's own samples, made once."""

import json
import signal
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from progdist import UserError, sample
from progdist._utils.random import TEACHER_SAMPLES, RowGenerator
from progdist.methods.guidance import Guided
from progdist.models.prompts import Prompts
from progdist.recipes.files import validated, write_recipe
from progdist.runs import teacher_samples
from progdist.runs.estimate.cost import estimate
from progdist.runs.run import Run, open_run
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import SHORT_EVALUATION, SilentCallback, call, refused, succeeds
from support.latent import SAVE, save_dit
from support.processes import start_run, wait_for
from support.stock import SaveStock, load_ddim, load_unet, stock_samples
from support.text import PROMPTS, WRITERS, write_sd
from support.text_transformers import TRANSFORMER_WRITERS, call_words

SHORT = {
    "conversion": {"updates": 2, "batch": 8, "precision": "float32"},
    "distill": {"chain": [8, 4], "updates": 2, "batch": 8, "precision": "float32"},
    "evaluate": {"samples": 16, "resamples": 2, "batch": 4, "solver": None, "precision": "float32"},
}


def opened(folder: Path, out: Path, data: Mapping[str, Any], *settings: str, **options: Any) -> Run:  # noqa: ANN401
    content = {"name": "a", "data": dict(data), "teacher": {"model": str(folder)}, **deepcopy(SHORT)}
    return open_run(validated(content, settings, "test"), out, SilentCallback(), **options)


def made(folder: Path, out: Path, data: Mapping[str, Any], *settings: str) -> tuple[Run, Tensor]:
    """A run whose samples are made, and these."""
    run = opened(folder, out, data, *settings)
    run.prepare()
    run.claim()
    run._make_samples()
    examples = run._examples()
    return run, torch.stack([examples[index][0] for index in range(len(examples))])


def noise_of(run: Run, count: int) -> Tensor:
    assert run.context.samples
    return RowGenerator((0, TEACHER_SAMPLES), range(count)).normal(torch.empty(count, *run.context.samples.model.shape))


def labels_of(run: Run) -> Tensor:
    examples = run._examples()
    return torch.tensor([examples[index][1] for index in range(len(examples))])


def test_samples_are_those_of_the_stock_scheduler(stock: SaveStock, tmp_path: Path) -> None:
    """In the steps that are asked for, from noise that is a function of seed and number."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    folder = stock(scheduler)
    run, samples = made(folder, tmp_path / "run", {"source": "teacher:10", "steps": 5})
    noise = noise_of(run, 10)
    torch.testing.assert_close(samples, sample(open_teacher(str(folder)).model.denoiser, noise, 5), rtol=0, atol=1e-6)
    theirs = stock_samples(load_unet(folder), load_ddim(folder), noise, 5)
    torch.testing.assert_close(samples, theirs, rtol=0, atol=1e-4)
    assert run.context.images.name == "10 samples of the teacher"
    assert run.context.images.labels is None


def test_samples_are_limited_as_by_the_folder(stock: SaveStock, tmp_path: Path) -> None:
    folder = stock(DDIMScheduler(clip_sample_range=0.5))
    run, samples = made(folder, tmp_path / "run", {"source": "teacher:3"})
    teacher = open_teacher(str(folder))
    ours = sample(teacher.limited(teacher.model.denoiser), noise_of(run, 3), 8)
    torch.testing.assert_close(samples, ours, rtol=0, atol=1e-6)
    assert float(samples.abs().max()) == 0.5


def test_guided_samples_of_classes(stock: SaveStock, tmp_path: Path) -> None:
    """All classes in turn but the null one, guided by the scale that is distilled; the student records their shares."""
    folder = stock(DDIMScheduler(clip_sample=False), classes=11)
    settings = ("conversion.guidance=3", "conversion.null_class=10")
    run, samples = made(folder, tmp_path / "run", {"source": "teacher:12"}, *settings)
    labels, denoiser = labels_of(run), open_teacher(str(folder)).model.denoiser
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    guided = Guided(denoiser, {"class_labels": torch.tensor([10])}, 3.0)
    ours = sample(guided, noise_of(run, 12), 8, class_labels=labels)
    torch.testing.assert_close(samples, ours, rtol=0, atol=1e-6)
    assert run.context.recipe.data.steps == 8  # the chain's first count, which is below 64
    assert run.context.teacher
    assert run.context.teacher.model.conditioning.shares == (2, 2, *[1] * 8, 0)
    with pytest.raises(UserError, match="guidance requires a null class"):
        opened(folder, tmp_path / "unclear", {"source": "teacher:12"}, "conversion.guidance=3")


def test_of_a_range_every_sample_has_a_scale(stock: SaveStock, tmp_path: Path) -> None:
    folder = stock(DDIMScheduler(clip_sample=False), classes=11)
    settings = ("conversion.guidance=[1, 8]", "conversion.null_class=10")
    run, samples = made(folder, tmp_path / "run", {"source": "teacher:12"}, *settings)
    assert run.context.samples
    _, batch = run.context.samples._drawn(range(12))
    scales = batch["guidance"]
    assert 1 <= float(scales.min()) < float(scales.max()) <= 8
    assert len(scales.unique()) >= 6
    guided = Guided(open_teacher(str(folder)).model.denoiser, {"class_labels": torch.tensor([10])})
    ours = sample(guided, noise_of(run, 12), 8, class_labels=labels_of(run), guidance=scales)
    torch.testing.assert_close(samples, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SAVE)
def test_latents_stay_latents(kind: str, tmp_path: Path) -> None:
    """Trained on as they are, and decoded where they are looked at."""
    folder = SAVE[kind](tmp_path / kind)
    run, samples = made(folder, tmp_path / "run", {"source": "teacher:6"})
    teacher = open_teacher(str(folder)).model
    condition: dict[str, Any] = {"class_labels": labels_of(run)} if teacher.classes else {}
    assert samples.shape[1:] == teacher.shape
    torch.testing.assert_close(samples, sample(teacher.denoiser, noise_of(run, 6), 8, **condition), rtol=0, atol=1e-6)
    assert teacher.autoencoder
    images, _ = run.context.images.at(torch.tensor([5, 0]))
    torch.testing.assert_close(images, teacher.autoencoder.decode(samples[[5, 0]]))
    assert run.context.images.shape == teacher.image
    assert not (tmp_path / "run" / "latents").exists()


def test_prompts_take_the_place_of_pairs(tmp_path: Path) -> None:
    """In turn, each distinct one encoded once; a guided sample is that of the same noise and prompt."""
    folder = write_sd(tmp_path / "sd")
    (tmp_path / "p.txt").write_text("\n\n".join([PROMPTS[0], PROMPTS[1], PROMPTS[0]]))
    data = {"source": "teacher:5", "prompts": str(tmp_path / "p.txt")}
    run, samples = made(folder, tmp_path / "run", data, "conversion.guidance=3")
    assert labels_of(run).tolist() == [0, 1, 0, 0, 1]
    assert run.context.images.classes == tuple(PROMPTS[:2])
    assert run.context.images.remarks() == [f"{tmp_path}/p.txt: skipped 2 blank lines"]
    model = open_teacher(str(folder)).model
    assert isinstance(model.conditioning, Prompts)
    encode = model.conditioning.encoder()
    rows: dict[str, Any] = {name: each.half().float()[labels_of(run)] for name, each in encode(PROMPTS[:2]).items()}
    guided = Guided(model.denoiser, encode.unconditional(None), 3.0)
    torch.testing.assert_close(samples, sample(guided, noise_of(run, 5), 8, **rows), rtol=1e-5, atol=1e-6)
    alone = opened(folder, tmp_path / "alone", {"source": "teacher", "prompts": str(tmp_path / "p.txt")})
    assert alone.recipe.data.source == "teacher:3"  # as many as there are prompts
    few = opened(folder, tmp_path / "few", {**data, "source": "teacher:2"})
    assert "the first 2 of 3 prompts are used" in few.context.images.remarks()[1]


def test_a_distilled_teacher_is_sampled_in_its_own_steps(stock: SaveStock, tmp_path: Path) -> None:
    model = open_teacher(str(stock(DDIMScheduler(prediction_type="v_prediction", clip_sample=False)))).model
    save(model.__class__(model.denoiser, (8,), (16,)), tmp_path / "eight")
    run, samples = made(tmp_path / "eight", tmp_path / "run", {"source": "teacher:4"})
    torch.testing.assert_close(samples, sample(model.denoiser, noise_of(run, 4), 8), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"data\.steps is 4, expected 8 steps, for which the teacher was distilled"):
        opened(tmp_path / "eight", tmp_path / "no", {"source": "teacher:4", "steps": 4})


def test_what_is_there_is_not_made_again(stock: SaveStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was interrupted goes on, bit for bit, with the shards that are absent; samples of others are not taken."""
    folder, data = stock(DDIMScheduler(clip_sample=False)), {"source": "teacher:10"}
    _, whole = made(folder, tmp_path / "whole", data)
    batches: list[int] = []

    def interrupted(denoiser: Any, noise: Tensor, *rest: Any, **more: Any) -> Tensor:  # noqa: ANN401
        batches.append(len(noise))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return sample(denoiser, noise, *rest, **more)

    monkeypatch.setattr(teacher_samples, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "run", data)
    assert len(list((tmp_path / "run" / "teacher_samples").glob("0*.safetensors"))) == 1
    run, samples = made(folder, tmp_path / "run", data)
    assert batches == [4, 4, 4, 2]  # the first of them, the one that was stopped, and those that were absent
    assert torch.equal(samples, whole)
    notes = run.context.callback.notes  # pyright: ignore[reportAttributeAccessIssue]
    assert notes[-1] == "samples of the teacher: 10 of 10"
    made(folder, tmp_path / "run", data)
    assert len(batches) == 4
    first = run.context.samples
    assert first
    others = [({"source": "teacher:10", "steps": 4}, ()), (data, ("seed=1",)), ({"source": "teacher:9"}, ())]
    prints = {opened(folder, tmp_path / "x", *each[:1], *each[1]).context.images.fingerprint for each in others}
    unet = load_unet(folder)
    unet.conv_out.bias.data += 1
    unet.save_pretrained(folder / "unet")
    another, samples = made(folder, tmp_path / "run", data)
    prints |= {first.fingerprint, another.context.images.fingerprint}
    assert len(prints) == 5
    assert not torch.equal(samples, whole)
    notes = another.context.callback.notes  # pyright: ignore[reportAttributeAccessIssue]
    assert any("had samples of another teacher or other settings: made again" in note for note in notes)


def test_a_dry_run_counts_and_times_them(stock: SaveStock, tmp_path: Path, known_rates: object) -> None:
    folder = stock(DDIMScheduler(clip_sample=False), classes=11)
    settings = ("conversion.guidance=3", "conversion.null_class=10")
    run = opened(folder, tmp_path / "out", {"source": "teacher:1000"}, *settings, dry=True)
    run.prepare()
    part = estimate(run).parts[0]
    assert (part.name, part.frozen_evaluations, part.updates) == ("teacher samples", 1000 * 8 * 2, 0)
    assert part.hours == pytest.approx(1000 * 8 * 2 * 0.5 / 3600)
    assert not (tmp_path / "out").exists()


CONVERSION = ("--set", "conversion.updates=2")
WORDS = ("--steps", 4, "--start", 8, "--updates", 2, "--batch", 8, *CONVERSION, *SHORT_EVALUATION)


@pytest.mark.slow
def test_the_whole_command(stock: SaveStock, tmp_path: Path) -> None:
    """Without a data set; the same command again repeats nothing, and says what is measured against."""
    words = ("distill", stock(), "--data", "teacher:24", "--out", tmp_path / "out", *WORDS)
    result = succeeds(*words)
    assert "Fréchet distance to 24 samples of the teacher" in " ".join(result.output.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Fréchet distance of 16 samples to 24 samples of the teacher" in page
    model = load(tmp_path / "out" / "student-0004")
    assert model.data == "24 samples of the teacher"
    assert "trained on 24 samples of the teacher" in (tmp_path / "out" / "student-0004" / "README.md").read_text()
    lines = (tmp_path / "out" / "evaluations.jsonl").read_text()
    again = succeeds(*words)
    assert "made once" not in again.output
    assert "trained in" not in again.output
    assert (tmp_path / "out" / "evaluations.jsonl").read_text() == lines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers tells of its deprecated arguments
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "FluxPipeline"])  # of both parts of a folder
def test_the_whole_command_for_prompts(kind: str, tmp_path: Path) -> None:
    """To a student that the stock pipeline samples."""
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    folder = {**WRITERS, **TRANSFORMER_WRITERS}[kind](tmp_path / "teacher")
    ranged = kind == "FluxPipeline" or kind in WRITERS
    more = ("--guidance", "1:5" if ranged else "3", *(() if kind in WRITERS else call_words(kind)))
    words = ("distill", folder, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "out", *more)
    succeeds(*words, *WORDS)
    description = json.loads((tmp_path / "out" / "student-0004" / "progdist.json").read_text())
    assert description["guidance"] == (3 if more[1] == "3" else [1, 5])
    assert description["data"] == "4 samples of the teacher"
    captions = json.loads((tmp_path / "out" / "samples" / "data.json").read_text())["names"]
    assert set(captions) == set(PROMPTS)
    card, scope = (tmp_path / "out" / "student-0004" / "README.md").read_text(), dict[str, Any]()
    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code.replace('"."', repr(str(tmp_path / "out" / "student-0004"))), scope)
    images = scope["images"] if kind in WRITERS else scope["result"].images
    assert images[0].size == (8, 8)


@pytest.mark.slow
def test_early_stopping_holds_samples_out(stock: SaveStock, tmp_path: Path) -> None:
    stop = "distill.stop={every: 1, window: 1, fraction: 0.0001, held_out: 4}"
    succeeds("distill", stock(), "--data", "teacher:24", "--out", tmp_path / "out", *WORDS, "--set", stop)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "held_out_loss" in lines


@pytest.fixture
def recipe(stock: SaveStock, tmp_path: Path) -> Path:
    """Long enough to be killed in while its samples are made."""
    content = {"name": "killed", "data": {"source": "teacher:96", "steps": 40}}
    content |= {"teacher": {"model": str(stock(DDIMScheduler(clip_sample=False)))}, **deepcopy(SHORT)}
    (tmp_path / "killed.yaml").write_text(write_recipe(validated(content, (), "test")))
    return tmp_path / "killed.yaml"


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "teacher_samples").glob("0*.safetensors")}


@pytest.mark.slow
def test_a_run_killed_while_it_samples_ends_the_same(recipe: Path, tmp_path: Path) -> None:
    assert start_run(recipe, tmp_path / "whole").finish()[0] == 0
    out = tmp_path / "run"
    process = start_run(recipe, out)
    wait_for(process, lambda: len(shards_of(out)) >= 3)
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert 3 <= len(shards_of(out)) < 24
    code, errors = start_run(recipe, out).finish()
    assert code == 0, errors
    assert shards_of(out) == shards_of(tmp_path / "whole")
    weights = "student-0004/unet/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(recipe: Path, tmp_path: Path) -> None:
    """Each its own shards, which are one batch wherever they are made."""
    assert start_run(recipe, tmp_path / "one").finish()[0] == 0
    two = start_run(recipe, tmp_path / "two", ranks=2)
    code, errors = two.finish()
    assert code == 0, errors
    assert two.output.count("Report:") == 1
    assert len(shards_of(tmp_path / "one")) == 24
    assert shards_of(tmp_path / "two") == shards_of(tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected data: pass --data SOURCE, or --data teacher:COUNT"),
        (("--data", "teacher"), "data.source teacher requires a count, e.g. teacher:5000, or data.prompts"),
        (("--data", "teacher:none"), "expected teacher:COUNT, e.g. teacher:5000"),
        (("--data", "teacher:9", "--background", "black"), "data.background applies only to image data"),
        (("--data", "teacher:9", "--image-column", "a"), "data.image_column applies only to image data"),
        (("--data", "teacher:9", "--caption-column", "a"), "data.caption_column applies only to image data"),
        (("--data", "teacher:9", "--set", "data.flip=true"), "data.flip applies only to image data"),
        (
            ("--data", "teacher:9", "--set", "data.size=8"),
            "data.size is 8, but the teacher makes images of (1, 8, 8): remove it",
        ),
        (("--data", "teacher:9", "--set", "data.channels=1"), "data.channels applies only to image data"),
        (("--data", "teacher:9", "--set", "data.classes=2"), "data.classes applies only to image data"),
        (("--data", "teacher:9", "--set", "data.steps=7"), "data.steps is 7, expected a divisor of the teacher's 1000"),
        (("--prompts", "{prompts}"), "data.prompts applies only to text-to-image teachers, got unconditional"),
        (("--data", "digits", "--prompts", "{prompts}"), "data.prompts applies only to samples of the teacher"),
        (("--data", "digits", "--set", "data.steps=4"), "data.steps applies only to samples of the teacher"),
        (("--prompts", "nowhere.txt"), "prompts nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_one_line(stock: SaveStock, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    given = [word.format(prompts=tmp_path / "p.txt") for word in words]
    refused(call("distill", stock(), *given, "--out", tmp_path / "out", *WORDS[:-2]), message)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_prompts_needs_them(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "sd")
    refused(call("distill", folder, "--data", "teacher:9", "--out", tmp_path / "out"), "--prompts FILE")
    refused(call("doctor", folder, "--data", "teacher:9"), "applies only to `progdist distill`")


def test_a_teacher_that_is_trained_has_no_samples_yet(tiny_recipe: Path, tmp_path: Path) -> None:
    result = call("run", tiny_recipe, "--set", "data.source=teacher:9", "--out", tmp_path / "out")
    refused(result, "data.source teacher:9 requires teacher.model")


def test_dit_folders_are_sampled_with_their_own_guidance(tmp_path: Path) -> None:
    """The null class of a folder is found without data, where its name or a missing one tells it."""
    folder = save_dit(tmp_path / "dit")
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(label): f"digit {label}" for label in range(9)} | {"9": "none"}
    (folder / "model_index.json").write_text(json.dumps(index))
    run = opened(folder, tmp_path / "run", {"source": "teacher:9"}, "conversion.guidance=2")
    run.prepare()
    assert run.context.samples
    assert run.context.samples.labels.tolist() == [*range(9)]
    notes = run.context.callback.notes  # pyright: ignore[reportAttributeAccessIssue]
    assert sum("guidance leads away from class 9 (none)" in note for note in notes) == 1
