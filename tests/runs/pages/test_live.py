"""The page while the run goes on: when it is written, what it says, and that the weights do not know of it."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import Result

from progdist._utils.errors import UserError
from progdist.recipes.files import read_recipe, validated
from progdist.runs.folder import RunFolder
from progdist.runs.pages import live as live_module
from progdist.runs.pages.live import LiveReport, live
from progdist.runs.pages.progress import UnderWay, duration, frozen_evaluations, run_seconds, sampling_evaluations
from progdist.runs.pages.report import write_report
from progdist.training.callbacks import Progress
from support.commands import SilentCallback, succeeds
from support.records import evaluation


@pytest.mark.slow
def test_a_page_at_every_update_and_the_same_weights(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []
    write = write_report

    def watched(folder: RunFolder, under_way: UnderWay | None) -> Path:
        path = write(folder, under_way)
        pages.append(path.read_text())
        return path

    monkeypatch.setattr(live_module, "write_report", watched)
    monkeypatch.setattr(live_module, "EVERY", 0.0)
    for share in ("SHARE", "SHARE_AFTER_EVALUATION"):
        monkeypatch.setattr(live_module, share, float("inf"))
    out = tmp_path / "run"
    succeeds("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true")
    assert len(pages) == 11 + 3 * 2 + 8  # updates from the second, and evaluations
    assert "<strong>Running</strong>: teacher, update 6 of 12, about" in pages[4]
    assert "<svg" in pages[4]  # the losses so far
    images = [*[0] * 11, 1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8]
    grids = [page.count('alt="images of') for page in pages]
    assert grids == images
    assert [page.count('alt="samples of') for page in pages] == grids  # each above its nearest training images
    assert 'class="done">student-0004' in pages[-6]
    assert ["http-equiv" in page for page in pages] == [True] * (len(pages) - 1) + [False]
    for name in ("teacher", "student-0004", "student-0002", "student-0001"):
        weights = Path(name) / "unet" / "diffusion_pytorch_model.safetensors"
        assert (out / weights).read_bytes() == (finished[0] / weights).read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_a_page_each_minute_and_less_often_where_it_takes_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, cost, written = [0.0], [0.2], []

    def write(folder: RunFolder, under_way: UnderWay | None) -> None:
        written.append((clock[0], under_way))
        clock[0] += cost[0]

    monkeypatch.setattr(live_module, "write_report", write)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    report = LiveReport(SilentCallback(), RunFolder(tmp_path))
    report.begin("teacher", 1000)
    for update in range(1, 400):
        clock[0] += 1.0
        cost[0] = 0.2 if update < 200 else 3.0
        report.progress(Progress(update, 0.5, 1.0, 1e-3, seconds=float(update)))
    times = [at for at, _ in written]
    assert [round(b - a) for a, b in pairwise(times)] == [60] * 4
    assert written[1][1] == UnderWay("teacher", 62, 1000, 1.0)
    clock[0] += 31.0  # a page took 3 s
    report.evaluated(evaluation("student", 4))
    assert len(written) == 6
    report.evaluated(evaluation("student", 4))  # within seconds of the last: the next update's page has it
    clock[0] += 29.0
    report.progress(Progress(401, 0.5, 1.0, 1e-3, seconds=401.0))
    assert len(written) == 6
    clock[0] += 2.0
    report.progress(Progress(402, 0.5, 1.0, 1e-3, seconds=402.0))
    assert len(written) == 7


def test_a_page_that_cannot_be_written_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, failures = [0.0], [OSError(28, "No space left on device"), UserError("damaged records"), OSError(5, "I/O")]

    def write(folder: RunFolder, under_way: UnderWay | None) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(live_module, "write_report", write)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    callback = SilentCallback()
    report = LiveReport(callback, RunFolder(tmp_path))
    report.begin("teacher", 1000)
    for update in range(1, 150):
        clock[0] += 1.0
        report.progress(Progress(update, 0.5, 1.0, 1e-3, seconds=float(update)))
    assert failures == []  # tried again, each minute
    (note,) = callback.notes
    assert "No space left on device" in note


def test_only_the_process_that_writes_has_a_page(tmp_path: Path) -> None:
    callback = SilentCallback()
    assert live(RunFolder(tmp_path, writes=False), callback) is callback
    assert isinstance(live(RunFolder(tmp_path), callback), LiveReport)


def test_the_time_left_is_that_of_the_updates_and_evaluations_to_come(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = read_recipe(str(tiny_recipe)), RunFolder(tmp_path)
    assert run_seconds(recipe, folder, [], UnderWay("teacher", 1, 12)) is None
    now = UnderWay("teacher", 4, 12, 6.0)
    students, seconds = 3 * 3 * (1 + 2 / 3), 6.0 / (3 * 8)
    steps = 8 + 3 * 4 + 2 * 2 + 2 * 1
    assert run_seconds(recipe, folder, [], now) == pytest.approx(6 * (8 + students) + 96 * steps * seconds)
    for name in ("teacher", "student-0004"):
        folder.model(name).mkdir()
    records = [evaluation(model, count, seconds_per_image=0.5 * count) for model, count in recipe.measurements()[:4]]
    now = UnderWay("student-0002", 1, 3, 6.0)
    assert run_seconds(recipe, folder, records, now) == pytest.approx(6 * (2 + 3) + 0.5 * 96 * (2 * 2 + 2 * 1))


def test_the_time_left_counts_evaluations_as_the_estimate_does(tmp_path: Path) -> None:
    """Guidance takes two of the given teacher, in stage 0 and when it is measured; a target of TRACT takes two."""
    content = {
        "name": "a",
        "data": {"source": "digits"},
        "teacher": {"model": "my-model"},
        "conversion": {"updates": 10, "batch": 4, "guidance": 2.0},
        "distill": {"chain": [8, 1], "updates": 5, "batch": 6, "method": "tract", "ema": 0.5},
        "evaluate": {"samples": 7},
    }
    recipe, folder = validated(content, [], "test"), RunFolder(tmp_path)
    assert frozen_evaluations(recipe, guided=True, stage_0=True) == {"converted": 2, "student-0001": 2}
    counts = {("teacher", 8): 16, ("converted", 8): 8, ("student", 1): 1, ("teacher", 1): 2}
    assert sampling_evaluations(recipe, guided=True, stage_0=True) == counts
    passes = 4 * (1 + 2 / 3)
    student, seconds = 5 * 6 * (1 + 2 / 3) / passes, 6.0 / (3 * passes)
    left = run_seconds(recipe, folder, [], UnderWay("converted", 2, 10, 6.0))
    assert left == pytest.approx(6 * (8 + student) + 7 * 27 * seconds)
    given = evaluation("teacher", 8, seconds_per_image=3.2)
    left = run_seconds(recipe, folder, [given], UnderWay("student-0001", 2, 5, 6.0))
    assert left == pytest.approx(6 * (3 + 10 * passes / (6 * (1 + 2 / 3))) + 7 * 11 * 0.2)
    folder.model("converted").mkdir()
    left = run_seconds(recipe, folder, [given], UnderWay("student-0001", 2, 5, 6.0))
    assert left == pytest.approx(6 * 3 + 7 * 11 * 0.2)


@pytest.mark.parametrize(
    ("seconds", "said"), [(40, "40 s"), (420, "7 min"), (11520, "3.2 h"), (190800, "2 days 5 h"), (90000, "25.0 h")]
)
def test_durations_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said
