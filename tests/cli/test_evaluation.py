"""`progdist statistics`, `progdist compare`, and what `progdist evaluate` measures beside the two distances."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from progdist._utils.words import supported
from support.commands import call, read_records, refused, succeeds

pytestmark = pytest.mark.slow

METRICS = ("inception_score", "precision_recall", "density_coverage")


class Page(HTMLParser):
    """The cells of a page's tables, and whether it asks for anything from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.outside: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "td" or (self.inside and tag == "b")
        self.outside += [value for name, value in attrs if name in ("src", "href") and value and value[:5] != "data:"]

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.cells.append(data.strip())


def test_evaluate_gives_all_metrics_in_all_spaces_in_one_pass(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [word for name in METRICS for word in ("--metric", name)]
    arguments = ("evaluate", finished[0] / "student-0002", "--data", "digits", "-n", 64, *options)
    result = succeeds(*arguments, "--features", "digits", "--features", "pixels", "--json")
    digits, pixels = (json.loads(line) for line in result.stdout.splitlines())
    assert (digits["features"], pixels["features"]) == ("digits", "pixels")
    assert set(digits["metrics"]) == {"inception_score", "precision", "recall", "density", "coverage"}
    assert set(pixels["metrics"]) == set(digits["metrics"]) - {"inception_score"}
    assert digits["frechet_bias"] > 0
    monkeypatch.setenv("COLUMNS", "80")
    both = succeeds("evaluate", finished[0] / "student-0001", *arguments[1:], "--features", "digits")
    assert both.stderr.count("warning: 64 samples, few for 64 digits features") == 1  # and not for each model
    said = both.stdout
    assert max(map(len, said.partition("Next: ")[0].splitlines())) <= 80
    for word in ("of which", "bias", "kernel", "×1000", "precision", "coverage", "inception score"):
        assert word in said


def test_statistics_stand_for_the_data(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """Written by `statistics` or kept by a run, and named in a recipe or on the command line: the same distance."""
    file = tmp_path / "digits.npz"
    assert "digits of 1797 images" in succeeds("statistics", "digits", "--features", "digits", "--out", file).stdout
    model = finished[0] / "student-0002"
    arguments = ("evaluate", model, "-n", 48, "--features", "digits", "--json")
    by_data, by_file, by_run = (
        json.loads(succeeds(*arguments, *more).stdout)
        for more in (
            ("--data", "digits"),
            ("--reference", file),
            ("--reference", f"digits={finished[0] / 'data_features' / 'digits.npz'}"),
        )
    )
    assert by_file["frechet"] == pytest.approx(by_data["frechet"], rel=1e-4)
    assert by_run["frechet"] == pytest.approx(by_data["frechet"], rel=1e-4)
    assert by_file["kernel"] is None
    kept = np.load(finished[0] / "data_features" / "digits.npz")
    assert (str(kept["features"]), int(kept["count"]), str(kept["source"])) == ("digits", 1797, "digits")
    assert "Fréchet" in succeeds(*arguments[:-1], "--reference", file).stdout
    refused(call(*arguments), "pass --data, or their statistics, --reference FILE")
    refused(call(*arguments, "--reference", file, "--metric", "precision_recall"), "give the data, too")
    refused(call(*arguments, "--reference", file, "--metric", "fid"), "--metric fid is unknown: use one of incep")
    refused(call(*arguments, "--reference", file, "--features", "pixels"), "names no features, expected NAME=FILE")
    refused(call(*arguments, "--data", "digits", "--weights", "inception=a"), "is not used by any metric")


def test_transparent_data_are_composed_on_the_background_and_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        Image.new("RGBA", (8, 8), (200, 100, 0, 127 if number else 255)).save(tmp_path / "data" / f"{number}.png")
    source, kept = f"folder:{tmp_path}/data", []
    for background in ("white", "black", "#00f"):
        out = tmp_path / f"{background}.npz"
        how = ("--images", 3, "--background", background)
        result = succeeds("statistics", source, "--out", out, *how)
        line = f"3 of 3 images have transparency: they are composed on {background} (data.background)"
        assert f"{source}: {line}" in result.stderr.splitlines()
        kept.append(np.load(out)["arr_0"][-1, 0, 0].astype(int))
    colours = np.array([[255, 255, 255], [0, 0, 0], [0, 0, 255]])
    assert np.abs(kept - (127 * np.array([200, 100, 0]) + 128 * colours) / 255).max() <= 1
    refused(call("statistics", source, "--out", tmp_path / "a.npz", "--background", "nocolour"), "is unknown")
    refused(call("statistics", "digits", "--out", tmp_path / "a.npz", "--background", "red"), "has no transparency")
    refused(call("evaluate", tmp_path, "--reference", out, "--background", "red"), "--background require --data")


def test_a_recipe_measures_against_its_reference(tiny_recipe: Path, tmp_path: Path) -> None:
    """Moved by 3 in each of 64 features, the reference is 9 * 64 farther away, in every record."""
    file, out = tmp_path / "digits.npz", tmp_path / "run"
    succeeds("statistics", "digits", "--features", "digits", "--out", file)
    with np.load(file) as known:
        np.savez(tmp_path / "moved.npz", mu=known["mu"] + 3, sigma=known["sigma"])
    moved = f"evaluate.reference={{digits: {tmp_path / 'moved.npz'}}}"
    settings = (moved, "evaluate.features=[digits]", "evaluate.metrics=[density_coverage]", "distill.chain=[8, 4]")
    succeeds("run", tiny_recipe, "--out", out, *(word for each in settings for word in ("--set", each)))
    for record in read_records(out, "evaluations"):
        quality = record["quality"][0]
        assert quality["frechet"] > 100
        assert set(quality["metrics"]) == {"density", "coverage"}
    refused(call("run", tiny_recipe, "--out", tmp_path / "b", "--set", moved, "--set", "evaluate.features=[pixels]"),
            "reference digits=", "is not used by any metric: remove it")  # fmt: skip


def test_compare_tells_models_apart(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """Models against the first of them; runs step by step, and a run beside itself is undecided; a page says it."""
    run, page = finished[0], tmp_path / "page.html"
    arguments = ("compare", f"{run}/teacher@8", f"{run}/teacher@1", run, "--data", "digits", "-n", 64)
    options = ("--features", "digits", "--metric", "precision_recall", "--resamples", 40, "--out", page)
    records = [json.loads(line) for line in succeeds(*arguments, *options, "--json").stdout.splitlines()]
    assert [record["label"] for record in records] == list("abcde")
    assert [record["steps"] for record in records] == [8, 1, 4, 2, 1]
    assert (records[0]["against"], records[0]["ratio"], records[0]["verdict"]) == (None, None, None)
    assert {record["against"] for record in records[1:]} == {"a"}
    assert {record["verdict"] for record in records[1:]} == {"undecided"}  # 64 samples are too few for any other
    assert all(record["too_few"] for record in records)
    for record in records[1:]:
        ratio = record["ratio"]
        assert ratio["value"] == pytest.approx(record["frechet"] / records[0]["frechet"])
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    result = succeeds(*arguments, *options)
    assert max(map(len, result.stdout.splitlines())) <= 80 + len(str(page))
    assert "e: " in result.stderr
    assert "warning: 64 samples, few for 64 digits features: use 640 or more" in result.stderr
    found = Page(page.read_text())
    assert not found.outside
    for record in records:
        assert supported(*(record[f"frechet{end}"] for end in ("", "_low", "_high"))) in found.cells
        assert record["verdict"] is None or record["verdict"] in found.cells
    assert page.read_text().count("data:image/png;base64,") == 5 + 1  # and some of the data
    twice = succeeds("compare", run, f"{run}/", "--data", "digits", "-n", 32, "--out", page, "--json").stdout
    other = [json.loads(line) for line in twice.splitlines()][3:]
    assert [(record["against"], record["verdict"]) for record in other] == [(each, "undecided") for each in "abc"]
    assert {record["ratio"]["value"] for record in other} == {1.0}


def test_what_cannot_be_compared_is_refused(finished: tuple[Path, Result], tmp_path: Path) -> None:
    run = finished[0]
    for words, message in (
        ((run / "teacher",), "compare requires at least two models"),
        ((run / "nowhere", run), "is not a folder: it does not exist"),
        ((f"{run}/teacher@many", run), "'many' is not a number of steps"),
        ((run / "teacher", run), "supports any number of steps: choose one, e.g."),
    ):
        refused(call("compare", *words, "--data", "digits", "-n", 32, "--out", tmp_path / "a.html"), message)
