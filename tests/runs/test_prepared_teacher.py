"""Runs whose teacher is prepared: made once, resumed, started over, and refused with other files."""

# pyright: reportPrivateImportUsage=false

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch

from progdist import UserError
from progdist._utils.files import read_json
from progdist.recipes.files import read_recipe
from progdist.runs.folder import RunFolder
from progdist.runs.prepared_teacher import prepared_teacher
from progdist.runs.run import open_run
from progdist.teachers.own import load
from progdist.teachers.prepared import Source
from support.commands import SilentCallback, call, refused, succeeds
from support.lora import kohya, weights, write
from support.original_layout import write_original
from support.text import write_sd
from support.text_runs import SMALL, distilled
from support.training import flat_weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_sd(tmp_path / "teacher")


@pytest.fixture
def file(base: Path) -> Path:
    return write(kohya(weights(base)), base.parent / "style.safetensors")


@pytest.mark.slow
def test_a_run_with_a_lora_file_is_resumed(pairs: Path) -> None:
    """Two updates a stage; the student again, bit for bit, from the same base; its card says what was fused."""
    base = write_sd(pairs.parent / "teacher")
    file = write(kohya(weights(base)), pairs.parent / "style.safetensors")
    words = ("--guidance", "3", "--with-lora", f"{file}:0.5")
    out = distilled(base, pairs, *words)
    student, made = load(out / "student-0004"), (out / "base" / "prepared.json").stat().st_mtime_ns
    first = flat_weights(student.denoiser.network)
    assert student.fused == ("style.safetensors:0.5",)
    card = (out / "student-0004" / "README.md").read_text()
    assert "`style.safetensors` with weight 0.5" in card
    assert str(file) not in card
    recipe = read_recipe(str(out / "recipe.yaml"))
    assert (recipe.teacher.model, recipe.teacher.loras) == (str(base), (f"{file}:0.5",))
    (out / "student-0004").rename(pairs.parent / "before")
    os.utime(base / "unet" / "config.json")
    assert distilled(base, pairs, *words) == out
    assert torch.equal(flat_weights(load(out / "student-0004").denoiser.network), first)
    assert (out / "base" / "prepared.json").stat().st_mtime_ns == made
    for other in (("--with-lora", f"{file}:0.7"), ("--with-lora", file, "--with-lora", file)):
        given = (base, "--data", f"captions:{pairs}", "--steps", 4, *SMALL, "--guidance", "3", *other)
        refused(call("distill", *given, "--out", out), "another teacher", "--fresh")
        assert (out / "base" / "prepared.json").stat().st_mtime_ns == made
    write(kohya(weights(base, 7)), file)
    refused(call("distill", base, "--data", f"captions:{pairs}", *words, "--out", out), "base", "lora 0", "--fresh")
    write(kohya(weights(base)), file)
    open_run(recipe, out, SilentCallback()).prepare()  # as `progdist run` does, which opens the base, too


@pytest.mark.slow
def test_a_run_that_starts_over_keeps_its_base(pairs: Path) -> None:
    """The older run is moved aside, and the new one has a base of its own files; LoRA students are of that base."""
    base = write_sd(pairs.parent / "teacher")
    file = write(weights(base), pairs.parent / "style.safetensors")
    out = pairs.parent / "run"
    prepared_teacher(Source(str(base), [str(file)]), out)
    RunFolder(out).claim("name: before\n", lambda path: "")
    distilled(base, pairs, "--guidance", "3", "--with-lora", f"{file}:0.5", "--lora", 2, "--fresh")
    assert read_json(out / "base" / "prepared.json")["loras"] == [["style.safetensors", 0.5]]
    assert (out.with_name("run.old-1") / "recipe.yaml").read_text() == "name: before\n"
    student = load(out / "student-0004")
    assert student.lora is not None
    assert student.lora.base == str(out / "base")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(student.lora.base)
    pipeline.load_lora_weights(str(out / "student-0004"))


def test_the_base_is_made_once(base: Path, file: Path, tmp_path: Path) -> None:
    """And again where no run has begun, if its files differ; a dry run writes nothing."""
    out, source = tmp_path / "run", Source(str(base), [str(file)])
    place = prepared_teacher(source, out, dry=True)
    assert not out.exists()
    assert Path(place).is_dir()
    notes: list[str] = []
    (out / ".base.1-2.partial").mkdir(parents=True)  # of a process that was killed
    with ThreadPoolExecutor(2) as pool:  # as of several processes
        places = list(pool.map(lambda number: prepared_teacher(source, out, note=notes.append), range(2)))
    assert places == [str(out / "base")] * 2
    assert prepared_teacher(source, out, dry=True) == str(out / "base")
    assert len(notes) == 1
    prepared_teacher(Source(str(base), [f"{file}:2"]), out, note=notes.append)
    assert len(notes) == 2
    assert read_json(out / "base" / "prepared.json")["loras"] == [["style.safetensors", 2.0]]
    assert sorted(each.name for each in out.iterdir()) == [".base.lock", "base"]


def test_nothing_is_written_into_what_is_no_run(base: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    (out / "base").mkdir(parents=True)
    (out / "base" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a run"):
        prepared_teacher(Source(str(base), [str(file)]), out)
    assert [each.name for each in out.iterdir()] == ["base"]


def test_nothing_is_written_into_another_run(base: Path, file: Path, tmp_path: Path) -> None:
    """One that was begun without the files, or with others."""
    out = tmp_path / "run"
    recipe = f"name: x\ndata: {{source: digits}}\nteacher: {{model: {base}}}\n"
    RunFolder(out).claim(recipe, lambda path: "")
    with pytest.raises(UserError, match="another teacher"):
        prepared_teacher(Source(str(base), [str(file)]), out)
    assert not (out / "base").exists()


def test_a_teacher_without_more_is_opened_where_it_is(base: Path, tmp_path: Path) -> None:
    assert prepared_teacher(Source(str(base)), tmp_path / "run") == str(base)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_doctor_opens_both(base: Path, file: Path, tmp_path: Path) -> None:
    """A checkpoint of one file with LoRA files; nothing is left behind."""
    model = write_original(diffusers.DiffusionPipeline.from_pretrained(base), tmp_path / "model.safetensors")
    before = sorted(each.name for each in tmp_path.iterdir())
    loras = ("--with-lora", f"{file}:0.5", "--with-lora", file)
    found = succeeds("doctor", model, "--config", base, *loras).output.replace("\n", " ")
    assert "UNet2DConditionModel" in found
    assert "style.safetensors:0.5, style.safetensors:1" in found
    assert sorted(each.name for each in tmp_path.iterdir()) == before


def test_mistakes_are_one_line(base: Path, file: Path, tmp_path: Path) -> None:
    """Of options and of keys of a recipe."""
    refused(call("doctor", base, "--config", base), "--config applies only")
    refused(call("doctor", base, "--with-lora", tmp_path / "style.ckpt"), "safetensors")
    refused(call("doctor", tmp_path / "model.ckpt", "--config", base), "pickle")
    refused(call("doctor", base, "--with-lora", f"{file}:0"), "weight")
    refused(call("doctor", file), "--config FOLDER")
    refused(call("run", "digits", "--set", f"teacher.loras=[{file}]"), "require teacher.model")
    refused(call("run", "digits", "--set", "teacher.config=x"), "require teacher.model")
    given = ("distill", base, "--prompts", tmp_path / "absent.txt", "--with-lora", f"{file}:nan")
    refused(call(*given, "--out", tmp_path / "run"), "nan")
    assert not (tmp_path / "run").exists()
