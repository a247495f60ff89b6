"""Folders of text-to-image students: what is copied, what the card says, what is refused."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import progdist
from progdist import UserError
from progdist.methods.guidance import Fixed, Guidance, Input
from progdist.models.model import Model
from progdist.models.prompts import Prompts
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.text import WRITERS, stock_pipeline, text_student, write_sd, write_sdxl

KINDS = pytest.mark.parametrize("kind", WRITERS)


@KINDS
def test_all_other_files_are_copied_byte_for_byte(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(text_student(pipelines[kind]), tmp_path / "student")
    files = [path.relative_to(pipelines[kind]) for path in pipelines[kind].rglob("*") if path.is_file()]
    changed = {
        str(path)
        for path in files
        if (pipelines[kind] / path).read_bytes() != (tmp_path / "student" / path).read_bytes()
    }
    own = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}
    assert changed == own | ({"model_index.json"} if kind == "StableDiffusionXLPipeline" else set())
    scheduler = stock_pipeline(tmp_path / "student", kind).scheduler
    assert scheduler.config["steps_offset"] == 1
    assert scheduler.config["timestep_spacing"] == "trailing"


def test_any_pipeline_finds_the_class_by_itself(pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(text_student(pipelines["StableDiffusionPipeline"]), tmp_path / "student")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "student")).__name__ == "StableDiffusionPipeline"


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
        (without("text_encoder"), "lacks text_encoder/"),
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
        prompts = open_teacher(str(place)).model.conditioning
        assert isinstance(prompts, Prompts)
        prompts.encoder()
    assert "\n" not in str(refused.value)


def test_a_network_of_more_than_latents_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(text_student(pipelines["StableDiffusionPipeline"]), tmp_path / "student")
    (tmp_path / "student" / "progdist.json").unlink()
    with pytest.raises(UserError, match="takes a guidance scale already"):
        open_teacher(str(tmp_path / "student"))


def test_options_of_text_are_refused_elsewhere(
    pipelines: dict[str, Path], tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    save(Model(tiny_model(), steps=(4,)), tmp_path / "plain")
    assert "applies only to text-to-image models" in call("sample", tmp_path / "plain", "--prompt", "a cat").stderr
    assert "this model has no guidance input" in call("sample", tmp_path / "plain", "--guidance", 2).stderr
    with pytest.raises(UserError, match="applies only to text-to-image models"):
        progdist.sample(tiny_model(), torch.randn(1, 1, 8, 8), 1, prompt="a cat")
    save(text_student(pipelines["StableDiffusionPipeline"]), tmp_path / "text")
    assert "requires a prompt: pass one, e.g. prompt" in call("sample", tmp_path / "text").stderr
    assert "label" in call("sample", tmp_path / "text", "--prompt", "an eight", "--label", 0).stderr
    far = call("sample", tmp_path / "text", "--prompt", "an eight", "--guidance", 20, "--out", tmp_path / "far.png")
    assert "guidance of 1 to 14, not 20" in far.output


def test_the_empty_prompt_of_sdxl(tmp_path: Path) -> None:
    """Zeros where the pipeline says so, the embedding of nothing where it does not."""
    place = write_sdxl(tmp_path / "xl")
    for zeros in (True, False):
        index = place / "model_index.json"
        index.write_text(index.read_text().replace(str(not zeros).lower(), str(zeros).lower()))
        prompts = open_teacher(str(place)).model.conditioning
        assert isinstance(prompts, Prompts)
        assert all(bool(rows.any()) != zeros for rows in prompts.encoder().unconditional(None).values())
        assert all(rows.any() for rows in prompts.encoder().unconditional("a smudge").values())


@pytest.mark.parametrize(
    ("guidance", "negative", "said"),
    [
        (Input(1.0, 8.0), None, "from 1 to 8, distilled in:"),
        (Input(1.0, 8.0), "a smudge", 'from 1 to 8, distilled in with negative prompt "a smudge":'),
        (
            Fixed(3.0),
            "a smudge",
            '`guidance_scale=1`: a guidance scale of 3 is distilled in with negative prompt "a smudge"',
        ),
        (None, None, "`guidance_scale=1`: no guidance is distilled in"),
    ],
)
def test_the_card_says_how_to_guide(
    guidance: Guidance | None, negative: str | None, said: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = text_student(pipelines["StableDiffusionPipeline"], guidance)
    conditioning = model.conditioning.for_guidance(negative=negative, null_class=None).after(guidance)
    save(replace(model, conditioning=conditioning, steps=(2,)), tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert said in card
    assert "pipeline_tag: text-to-image" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(tmp_path / "student")))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["images"][0].size == (8, 8)
    kept = load(tmp_path / "student").conditioning
    assert isinstance(kept, Prompts)
    assert (kept.learned, kept.negative) == (guidance, negative)


def secret(folder: Path) -> Path:
    file = folder / "id_rsa"
    file.write_text("private")
    return file


@pytest.mark.parametrize("link", ["text_encoder/notes.txt", "tokenizer/deep", "text_encoder/config.json", "tokenizer"])
def test_links_out_of_a_teachers_folder_are_not_followed(tmp_path: Path, link: str) -> None:
    """A file, a folder, a file that is needed, a whole part: what they lead to would be published with the student."""
    folder, elsewhere = write_sd(tmp_path / "teacher"), tmp_path / "home"
    elsewhere.mkdir()
    place = folder / link
    if place.is_dir():
        shutil.move(place, elsewhere / "tokenizer")
        place.symlink_to(elsewhere / "tokenizer")
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(secret(elsewhere) if place.suffix else elsewhere)
    with pytest.raises(UserError, match=rf"teacher/{link} is a link to .*home") as caught:
        open_teacher(str(folder))
    assert "\n" not in str(caught.value)


def test_links_within_a_folder_and_the_cache_of_the_hub_work(tmp_path: Path) -> None:
    """The cache is `snapshots/REVISION/...` of links to `blobs/` beside it; of another repository they are refused."""
    written, cache = write_sd(tmp_path / "written"), tmp_path / "models--somebody--theirs"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abcd"
    for number, file in enumerate(sorted(path for path in written.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / "blobs" / str(number))
        link.symlink_to(Path("../" * (len(link.relative_to(cache).parts) - 1)) / "blobs" / str(number))
    (snapshot / "tokenizer" / "again.json").symlink_to("tokenizer_config.json")
    save(text_student(snapshot), tmp_path / "student")
    copy = tmp_path / "student" / "text_encoder" / "config.json"
    assert copy.read_bytes() == (written / "text_encoder" / "config.json").read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "student").rglob("*"))
    for place in (tmp_path, cache, cache / "snapshots" / "4567cdef"):
        place.mkdir(exist_ok=True)
        (snapshot / "tokenizer" / "other.json").symlink_to(secret(place))
        with pytest.raises(UserError, match=r"is a link to .*, outside "):
            open_teacher(str(snapshot))
        (snapshot / "tokenizer" / "other.json").unlink()


@pytest.mark.parametrize("parent", ["snapshots", "mine/snapshots", "models--mine/other"])
def test_a_folder_that_is_named_as_the_cache_is_gets_nothing_more(parent: str, tmp_path: Path) -> None:
    """Neither beside it, nor in a `blobs/` of no repository."""
    folder = write_sd(tmp_path / parent / "teacher")
    for place in (tmp_path, folder.parent, folder.parent.parent / "blobs"):
        place.mkdir(exist_ok=True)
        (folder / "tokenizer" / "other.json").symlink_to(secret(place))
        with pytest.raises(UserError, match=r"is a link to .*, outside "):
            open_teacher(str(folder))
        (folder / "tokenizer" / "other.json").unlink()


def test_what_is_no_file_is_not_copied(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "teacher")
    os.mkfifo(folder / "tokenizer" / "pipe.json")
    with pytest.raises(UserError, match=r"pipe.json is neither a file nor a folder"):
        open_teacher(str(folder))
