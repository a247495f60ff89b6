"""The whole job on a tiny recipe through the command line: what it writes, how it goes on, how it refuses."""

import errno
import json
import math
import resource
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from PIL import Image
from typer.testing import Result

from conftest import call
from progdist._utils.files import read_tensors
from progdist._utils.random import SAMPLING_NOISE, generator
from progdist.training import checkpoint
from test_model_folder import stock, stock_ddim, stock_unet

pytestmark = pytest.mark.slow


def refused(result: Result, *says: str) -> None:
    """Exit code 2, one line on standard error, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("progdist: ")
    for words in says:
        assert words in result.stderr


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("run") / "tiny"
    result = call("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true")
    assert result.exit_code == 0, result.output
    return out, result


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{kind}.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(finished: tuple[Path, Result]) -> None:
    out, result = finished
    models = [("teacher", 8)] + [(name, steps) for steps in (4, 2, 1) for name in ("student", "teacher")]
    assert [(record["model"], record["steps"]) for record in records(out, "evaluations")] == models
    for name, steps in models:
        assert size_of(out / "samples" / f"{name}-{steps:04d}.png") == (71, 71)
    assert [record["update"] for record in records(out, "metrics")] == [*range(1, 13), *[1, 2, 3] * 3]
    for record in records(out, "evaluations"):
        assert record["network_evaluations"] == record["steps"]
        assert record["seconds_per_image"] > 0
        assert {quality["features"] for quality in record["quality"]} == {"digits", "pixels"}
        assert 0 <= record["quality"][0]["agreement"] <= 1
    assert records(out, "evaluations")[0]["rmse"] == 0
    told = json.loads((out / "student-0002" / "progdist.json").read_text())
    assert (told["steps"], told["lineage"], told["classes"]) == ([2], [8, 4], list("0123456789"))
    assert told["training"]["updates"] == 3
    assert f"Report: {out / 'report.html'}" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "Report" not in line) <= 80


def test_the_students_learn(finished: tuple[Path, Result], tiny_recipe: Path) -> None:
    """Each student starts as its teacher and moves away from it."""
    out, _ = finished
    weights = [
        read_tensors(out / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("teacher", "student-0004", "student-0002", "student-0001")
    ]
    for teacher, student in pairwise(weights):
        distance = math.sqrt(sum(float((teacher[key] - student[key]).square().sum()) for key in teacher))
        size = math.sqrt(sum(float(teacher[key].square().sum()) for key in teacher))
        assert 0 < distance / size < 0.2


def test_the_same_command_again_repeats_nothing(finished: tuple[Path, Result], tiny_recipe: Path) -> None:
    out, _ = finished
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("report.html", ".owner")
    }
    assert call("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("stop", ["teacher 6", "student-0002 3", "evaluate 3"])
def test_an_interrupted_run_goes_on_to_the_same_end(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """Stopped within the teacher, within a student, or between evaluations: the same weights, metrics and distances."""
    out, _ = finished
    command = ("run", tiny_recipe, "--out", tmp_path / "run", "--set", "network.class_conditional=true")
    where, count = stop.split()
    seen: dict[str, Any] = {"title": "", "evaluations": 0}

    class Interrupting:
        def __init__(self, console: object) -> None: ...
        def begin(self, title: str, updates: int) -> None:
            seen["title"] = title

        def progress(self, progress: Any) -> None:  # noqa: ANN401
            if seen["title"] == where and progress.update == int(count):
                raise KeyboardInterrupt

        def end(self) -> None: ...
        def evaluated(self, record: object) -> None:
            seen["evaluations"] += 1
            if where == "evaluate" and seen["evaluations"] == int(count):
                raise KeyboardInterrupt

        def note(self, text: str) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr("progdist.cli.progress.Terminal", Interrupting)
        assert call(*command).exit_code == 130
    assert not (tmp_path / "run" / "student-0001").exists()
    assert call(*command).exit_code == 0
    for name in ("teacher", "student-0004", "student-0002", "student-0001"):
        path = Path(name) / "unet" / "diffusion_pytorch_model.safetensors"
        assert (out / path).read_bytes() == (tmp_path / "run" / path).read_bytes()
    assert (out / "metrics.jsonl").read_text() == (tmp_path / "run" / "metrics.jsonl").read_text()
    ours, theirs = records(tmp_path / "run", "evaluations"), records(out, "evaluations")
    assert [record["quality"] for record in ours] == [record["quality"] for record in theirs]


@pytest.mark.parametrize("conditional", [True, False])
def test_sample_is_stock_diffusers(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, conditional: bool
) -> None:
    """`progdist sample` and the stock pipeline of the folder, from the same noise, at the student's step count."""
    out = finished[0]
    if not conditional:
        out = tmp_path / "plain"
        assert call("run", tiny_recipe, "--out", out, "--set", "distill.end=4").exit_code == 0
    npz = tmp_path / "images.npz"
    assert call("sample", out / "student-0004", "-n", 12, "--seed", 5, "--out", npz).exit_code == 0
    ours = torch.from_numpy(np.load(npz)["images"])
    noise = torch.randn(12, 1, 8, 8, generator=generator(5, SAMPLING_NOISE))
    if conditional:
        unet = stock_unet(out / "student-0004")
        scheduler = stock_ddim(out / "student-0004")
        theirs = stock(unet, scheduler, noise, 4, class_labels=torch.arange(12) % 10)
    else:
        pipeline = DDIMPipeline.from_pretrained(out / "student-0004")
        theirs = stock(pipeline.unet, pipeline.scheduler, noise, 4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_sample_and_evaluate(finished: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = finished
    picture = tmp_path / "grid.png"
    result = call("sample", out / "student-0002", "-n", 6, "--columns", 3, "--label", 7, "--out", picture)
    assert result.exit_code == 0
    assert size_of(picture) == (26, 17)
    assert "6 images in 2 steps" in result.stderr
    assert "was distilled for 2 steps, not 3" in call(
        "sample", out / "student-0002", "--steps", 3, "--out", picture
    ).stderr  # fmt: skip
    result = call(
        "evaluate", out / "student-0002", out / "student-0001", "--data", "digits", "--features", "digits",
        "-n", 64, "--json",
    )  # fmt: skip
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["steps"] for line in told] == [2, 1]
    assert all(line["frechet"] > 0 and line["samples"] == 64 for line in told)
    assert "use 640 or more" in result.stderr
    plain = call("evaluate", out / "student-0002", "--data", "digits", "-n", 64)
    assert "Fréchet" in plain.stdout
    heads = {}
    for words in ("ddim", "ancestral", "ancestral --level 0", "overshoot", "heun", "ddim --clip"):
        npz = tmp_path / "images.npz"
        method, *more = words.split()
        arguments = ("sample", out / "teacher", "--steps", 8, "-n", 4, "--out", npz, "--method", method, *more)
        assert call(*arguments).exit_code == 0
        heads[words] = np.load(npz)["images"]
        assert call(*arguments).exit_code == 0
        np.testing.assert_array_equal(heads[words], np.load(npz)["images"])
    assert len({image.tobytes() for image in heads.values()}) == len(heads)
    assert np.abs(heads["ddim --clip"]).max() <= 1 < np.abs(heads["ddim"]).max()
    refused(call("sample", out / "teacher", "--steps", 8, "--method", "dimm"), "use one of ddim, ancestral")
    fidelity = call(
        "evaluate", out / "student-0002", out / "teacher", "--data", "digits", "-n", 64, "--steps", 8, "--json",
        "--teacher", out / "teacher", "--teacher-steps", 8,
    )  # fmt: skip
    told = [json.loads(line) for line in fidelity.stdout.splitlines()]
    assert told[0]["rmse"] > told[1]["rmse"] == 0
    assert told[0]["network_evaluations"] == 8


def test_recipes_and_version() -> None:
    assert "digits" in call("recipes").stdout
    assert call("recipes", "digits").stdout.startswith("name: digits")
    assert call("--version").stdout.strip() == "0.1.0"


def test_mistakes_are_one_line_and_exit_code_2(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path
) -> None:
    out, student = finished[0], finished[0] / "student-0004"
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    refused(call("run", tiny_recipe, "--set", "distill.upd=5"), "did you mean updates?")
    refused(call("run", tiny_recipe, "--set", "distill.chain=[8,3]"), "no multiple of 3")
    refused(call("run", "digit"), "did you mean digits?")
    refused(call("run", tiny_recipe, "--out", out), "another recipe", "--out")
    refused(call("run", tiny_recipe, "--out", tiny_recipe), "is no run")
    (tmp_path / "empty").mkdir()
    empty = f"data.source=folder:{tmp_path}/empty"
    refused(call("run", tiny_recipe, "--out", tmp_path / "a", "--set", empty), "no images")
    refused(call("run", tiny_recipe, "--out", tmp_path / "b", "--set", "network.multipliers=[1,1,1,1,1]"), "halve")
    refused(
        call("run", tiny_recipe, "--out", tmp_path / "c", "--set", "teacher.gradient_accumulation_steps=3"),
        "not divide",
    )
    refused(call("sample", tmp_path / "nowhere"), "no model folder")
    refused(call("sample", student, "--steps", 0), "takes 1 to")
    refused(call("sample", student, "--label", 10), "label 10 is out of range", "0 to 9")
    refused(call("sample", out / "teacher"), "--steps")
    refused(call("sample", student, "--out", tmp_path / "x.jpg"), ".png or .npz")
    refused(call("evaluate", student, "--data", "digits", "--features", "fashion-mnist"), "pixels")
    refused(call("report", tmp_path), "holds no run")
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 8, 12, 3), np.uint8))
    shutil.copytree(student, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(call("sample", tmp_path / "cut"), str(weights.parent), "is not what was written")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))


def test_images_of_another_size_are_told(tiny_recipe: Path, tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (8, 8), (9, 9)]):
        Image.new("L", size, index).save(tmp_path / f"{index}.png")
    result = call("run", tiny_recipe, "--out", tmp_path / "run", "--set", f"data.source=folder:{tmp_path}")
    refused(result, "2.png" if "2.png" in result.stderr else "image 2", "give a size")


def test_a_full_disk_loses_nothing(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while the first student is written: one line, and the run then goes on from what is there."""
    command = ("run", tiny_recipe, "--out", tmp_path / "run")

    def full(path: Path, content: bytes) -> None:
        if "student-0004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, content)

    whole = checkpoint.atomic_write
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", full)
        refused(call(*command), "No space left on device", "free some space")
    assert (tmp_path / "run" / "teacher" / "progdist.json").is_file()
    teacher = (tmp_path / "run" / "teacher" / "progdist.json").stat().st_mtime_ns
    assert call(*command).exit_code == 0
    assert (tmp_path / "run" / "teacher" / "progdist.json").stat().st_mtime_ns == teacher


def test_weights_that_cannot_be_written_are_told(tiny_recipe: Path, tmp_path: Path) -> None:
    """The system itself refuses a large file, as it would on a full disk; nothing half written stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        settings = ("--set", "teacher.checkpoint_every=100")
        refused(call("run", tiny_recipe, "--out", tmp_path / "run", *settings), "teacher", "ulimit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "run").glob("[!.]*")) == [
        "metrics.jsonl",
        "recipe.yaml",
        "report.html",
    ]


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage, the update and the last good checkpoint are named; with another rate the run then goes on."""
    command = ["run", tiny_recipe, "--out", tmp_path / "run", "--set", "distill.checkpoint_every=1"]
    from progdist.distillation.progressive import distillation_loss

    count = 0

    def breaking(*arguments: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401
        nonlocal count
        count += 1
        loss = distillation_loss(*arguments, **options)
        return loss * math.nan if count == 3 else loss

    with monkeypatch.context() as patch:
        patch.setattr("progdist.distillation.progressive.distillation_loss", breaking)
        result = call(*command, "--set", "distill.max_skipped_updates=0")
    checkpoint = tmp_path / "run" / "checkpoints" / "student-0004" / "00000001.safetensors"
    refused(result, "student-0004: update 3 of 3", "not both finite", str(checkpoint))
    assert checkpoint.is_file()
    assert not (tmp_path / "run" / "student-0004").exists()
    assert call(*command, "--set", "distill.learning_rate=1.0e-4").exit_code == 0
    assert not (tmp_path / "run" / "checkpoints" / "student-0004").exists()


def test_a_rate_that_blows_the_weights_up_never_becomes_a_model(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ("distill.learning_rate=1e30", "distill.clip=0", "distill.updates=50", "distill.checkpoint_every=1")
    words = [word for text in settings for word in ("--set", text)]
    refused(call("run", tiny_recipe, "--out", tmp_path / "run", *words), "student-0004: update ", "no checkpoint")
    assert not (tmp_path / "run" / "student-0004").exists()


def test_a_torn_record_is_made_again(finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "evaluations.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]) + lines[0][:40])
    command = ("run", tiny_recipe, "--out", tmp_path / "run", "--set", "network.class_conditional=true")
    assert call(*command).exit_code == 0
    told = [record for line in path.read_text().splitlines() if line.endswith("}") for record in [json.loads(line)]]
    assert sorted((record["model"], record["steps"]) for record in told) == sorted(
        (record["model"], record["steps"]) for record in map(json.loads, lines)
    )


def test_the_module_runs_and_reports_mistakes_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "progdist", "run", "no-such-recipe"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_evaluate_repeats_what_a_recipe_measures(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """The same clipping, method, batch and precision can be asked for, and each of them reaches the samples."""
    out, _ = finished
    words = ("evaluate", out / "student-0004", "--data", "digits", "-n", 48, "--json", "--precision", "float32")

    def measured(*more: object) -> dict[str, Any]:
        result = call(*words, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    plain = measured()
    assert measured("--batch", 7)["frechet"] == pytest.approx(plain["frechet"], rel=1e-3)
    assert measured("--clip")["frechet"] != plain["frechet"]
    ancestral = measured("--method", "ancestral")["frechet"]
    assert ancestral != plain["frechet"] != measured("--precision", "bf16")["frechet"]
    assert measured("--method", "ancestral", "--level", 0.3)["frechet"] != ancestral
    assert measured("--method", "heun")["network_evaluations"] == 7
    for more, says in (
        (("--precision", "fp16"), "auto, float32, bf16"),
        (("--variance", 0.5), "of the method ancestral"),
        (("--teacher-steps", 8), "of --teacher"),
    ):
        refused(call(*words, *more), says)


def test_the_page_is_there_from_the_start(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written before the first update and after each measurement, and says what is next until all is done."""
    from progdist.runs import run as module

    pages: list[str] = []
    write = module.write_report

    def watched(folder: Any) -> Path:  # noqa: ANN401
        path = write(folder)
        pages.append(path.read_text())
        return path

    monkeypatch.setattr(module, "write_report", watched)
    result = call("run", tiny_recipe, "--out", tmp_path / "run", "--set", "distill.chain=[8, 4, 2]")
    assert result.exit_code == 0, result.output
    assert f"live report: {tmp_path / 'run' / 'report.html'}" in result.output.replace("\n", "")
    assert ["the teacher is next" in page for page in pages] == [True, False, False, False]
    assert ["the student of 4 steps is next" in page for page in pages] == [False, True, False, False]
    assert ["http-equiv" in page for page in pages] == [True, True, True, False]
    assert "student-0004" in pages[2]


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from progdist.runs.folder import RunFolder

    def nothing(file: Any, how: int) -> None:  # noqa: ANN401
        raise OSError(errno.ENOLCK, "No locks available")

    said: list[str] = []
    monkeypatch.setattr("fcntl.flock", nothing)
    with RunFolder(tmp_path / "run").locked(said.append):
        pass
    assert "cannot be locked (No locks available)" in said[0]


def test_a_skipped_update_leaves_the_loss_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from progdist.cli.progress import Terminal
    from progdist.training.callbacks import Progress

    terminal = Terminal(Console(width=80))
    terminal.begin("teacher", 3)
    for update, loss in enumerate((math.nan, 0.5, math.nan), 1):
        terminal.progress(Progress(update, loss, 1.0, 1e-3, 0.1))
    terminal.end()
    assert "loss 0.5000" in capsys.readouterr().out
