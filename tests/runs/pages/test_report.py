"""The report in a real browser: the slider moves, the images change, nothing is fetched and nothing complains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import Result

from progdist._utils.words import interval, supported
from progdist.data.sources import load_images
from progdist.recipes.files import read_recipe, validated
from progdist.runs.folder import RunFolder
from progdist.runs.pages.progress import UnderWay
from progdist.runs.pages.report import _next, write_report
from support.commands import SHORT_EVALUATION, read_records, succeeds
from support.png import pixels
from support.records import evaluation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def page(finished: tuple[Path, Result]) -> Path:
    return finished[0] / "report.html"


def shown(browser: Any, place: str = ".grids") -> list[Any]:  # noqa: ANN401
    return [
        picture for picture in browser.find_elements("css selector", f".slide {place} img") if picture.is_displayed()
    ]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_the_slider_moves_and_the_images_change(page: Path, browse: Any, width: int, dark: bool) -> None:  # noqa: ANN401
    browser = browse(page.as_uri(), width, dark=dark)
    slider, count = (browser.find_element("id", name) for name in ("steps", "count"))
    assert count.text == "1 step"
    seen = []
    for pictures in (2, 2, 3):  # the other solver is DDIM where the steps are 1 or 2
        images = shown(browser)
        assert [int(image.get_property("naturalWidth")) for image in images] == [71] * pictures
        seen.append((count.text, *(image.get_attribute("src") for image in images)))
        slider.send_keys("\ue014")  # arrow right
    assert [text for text, *_ in seen] == ["1 step", "2 steps", "4 steps"]
    assert len({source for _, *sources in seen for source in sources}) == 7
    assert count.text == "8 steps"
    assert [image.get_attribute("alt") for image in shown(browser)] == ["images of teacher in 8 steps"]
    browser.refresh()
    assert browser.find_element("id", "count").text == "8 steps"  # where the reader left it
    fits = "return [...document.querySelectorAll('html, figure, svg, table')].every(e => e.scrollWidth <= innerWidth)"
    assert browser.execute_script(fits)
    colours = "return [document.body, document.querySelector('svg')].map(e => getComputedStyle(e)[arguments[0]])"
    (paper, _), (_, ink) = (browser.execute_script(colours, name) for name in ("backgroundColor", "color"))
    assert (paper, ink) == (
        ("rgb(22, 20, 18)", "rgb(231, 229, 228)") if dark else ("rgb(255, 255, 255)", "rgb(28, 25, 23)")
    )
    assert browser.get_log("browser") == []


def test_without_scripts_everything_is_there(page: Path, browse: Any) -> None:  # noqa: ANN401
    browser = browse(page.as_uri(), 360, scripts=False)
    assert len(shown(browser)) == 2 + 2 + 3 + 1
    assert all(title.is_displayed() for title in browser.find_elements("css selector", ".slide h3"))
    assert not browser.find_element("id", "steps").is_displayed()
    assert (
        len([figure for figure in browser.find_elements("css selector", ".figures svg") if figure.is_displayed()]) == 3
    )


def test_it_is_one_file_that_needs_no_other(page: Path) -> None:
    text = page.read_text()
    links = [word for word in ('src="http', 'href="http', "@import", "url(http", "http-equiv") if word in text]
    assert links == []
    assert 'id="guidance"' not in text  # a run without a range of guidance has no slider of scales
    for heading in ("Same noise, fewer steps", "Quality against steps", "Training", "Recipe"):
        assert heading in text
    assert text.index('id="training"') < text.index("Same noise, fewer steps")
    for name in ("student-0004", "student-0001", "all students", "learning_rate", "diffusers 0."):
        assert name in text


@pytest.mark.parametrize("width", [1200, 390])
def test_training_images_stand_at_the_top(page: Path, browse: Any, width: int) -> None:  # noqa: ANN401
    browser = browse(page.as_uri(), width)
    row = browser.find_elements("css selector", "#training figure")
    assert len(row) == 8
    assert len({figure.location["y"] for figure in row}) == (1 if width == 1200 else 2)
    digits, known = load_digits(), load_images("digits")
    for figure, index in zip(row, known.chosen(8, 0).tolist(), strict=True):
        assert figure.text == str(digits.target[index])  # pyright: ignore
        source = figure.find_element("css selector", "img").get_attribute("src")
        np.testing.assert_array_equal(pixels(source), np.rint(digits.images[index] * 255 / 16))  # pyright: ignore


@pytest.mark.parametrize("width", [1200, 390])
def test_samples_stand_above_their_nearest_training_images(
    finished: tuple[Path, Result],
    page: Path,
    browse: Any,  # noqa: ANN401
    width: int,
) -> None:
    """Of every model at the step count that is shown, as wide as the page on a phone."""
    browser = browse(page.as_uri() + "#4", width)
    pairs = shown(browser, ".nearest")
    kept = [RunFolder(finished[0]).nearest(name, 4) for name in ("teacher", "teacher_dpmpp", "student")]
    for picture, path in zip(pairs, kept, strict=True):
        np.testing.assert_array_equal(pixels(picture.get_attribute("src")), np.asarray(Image.open(path)))
    assert len({picture.location["y"] for picture in pairs}) == (1 if width == 1200 else 3)
    assert min(picture.size["width"] for picture in pairs) > 250


@pytest.mark.parametrize("width", [1200, 390])
def test_precision_recall_density_and_coverage_have_a_table(
    finished: tuple[Path, Result],
    page: Path,
    browse: Any,  # noqa: ANN401
    width: int,
) -> None:
    browser = browse(page.as_uri(), width)
    rows = browser.find_elements("css selector", "#metrics tbody tr")
    records = read_records(finished[0], "evaluations")
    measured = [records[0], *(record for record in records if record["model"] == "student")]
    assert [(record["model"], record["steps"]) for record in measured] == [
        ("teacher", 8), ("student", 4), ("student", 2), ("student", 1)
    ]  # fmt: skip
    for row, record in zip(rows, measured, strict=True):
        assert row.is_displayed()
        for name, value in record["quality"][0]["metrics"].items():
            cell = row.find_element("css selector", f'[data-label="{name}"]')
            ends = value["low"], value["high"]
            assert cell.text.splitlines() == [supported(value["value"], *ends), interval(*ends, " – ")]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_table_compares_with_a_better_sampler(finished: tuple[Path, Result], page: Path, browse: Any) -> None:  # noqa: ANN401
    browser = browse(page.as_uri())
    cells = [row.text.split() for row in browser.find_elements("css selector", "#quality tbody tr")]
    found = {(record["model"], record["steps"]): record for record in read_records(finished[0], "evaluations")}
    assert found["teacher_dpmpp", 4]["method"] == "dpmpp"
    assert found["teacher_dpmpp", 4]["network_evaluations"] == 4
    for steps, solver in ((4, "teacher_dpmpp"), (2, "teacher"), (1, "teacher")):
        row = next(row for row in cells if row[0] == str(steps))
        models = ("teacher", solver, "student")
        qualities = (found[model, steps]["quality"][0] for model in models)
        assert row[1:4] == [supported(*(each[f"frechet{end}"] for end in ("", "_low", "_high"))) for each in qualities]


def test_the_teacher_of_a_given_model_is_next_after_it(tiny_recipe: Path, tmp_path: Path) -> None:
    """Its converted student where there is a stage 0, or else the first student."""
    first, network = evaluation("teacher", 8), read_recipe(str(tiny_recipe))
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": "my-model"}}
    given = validated(content, ["distill.chain=[8,4]"], "test")
    folder = RunFolder(tmp_path)
    assert _next(network, folder, [first]) == "the student of 4 steps"
    assert _next(given, folder, []) == "the teacher"
    assert _next(given, folder, [first]) == "the converted teacher"
    assert _next(given, folder, [first, evaluation("converted", 8)]) == "the student of 4 steps"
    measured = [evaluation(name, 4) for name in ("student", "teacher_dpmpp", "teacher")]
    assert _next(given, folder, [first, evaluation("converted", 8), *measured]) == ""
    folder.model("teacher").mkdir()  # of a run without stage 0 it is the first model
    assert _next(given, folder, [first]) == "the student of 4 steps"
    measured = [evaluation(name, 4) for name in ("student", "teacher_dpmpp", "teacher")]
    assert _next(given, folder, [first, *measured]) == ""


def test_while_the_run_goes_on_the_page_loads_itself_anew(
    finished: tuple[Path, Result],
    tmp_path: Path,
    browse: Any,  # noqa: ANN401
) -> None:
    """Half of a run: what is done, under way and to come; a finished run's page rests."""
    folder = RunFolder(tmp_path / "half")
    folder.root.mkdir()
    for name in ("recipe.yaml", "teacher", "student-0004", "metrics.jsonl", "samples"):
        (folder.root / name).symlink_to(finished[0] / name)
    lines = (finished[0] / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (folder.root / "evaluations.jsonl").write_text("".join(lines[:4]))
    browser = browse(write_report(folder, UnderWay("student-0002", 1, 3, 60.0)).as_uri(), 360)
    status = browser.find_element("id", "status").text
    assert "Running: student-0002, update 1 of 3, about 2 min left of this stage and 5 min of the run" in status
    assert browser.title.startswith("Running: half")
    states = {item.text: item.get_attribute("class") for item in browser.find_elements("css selector", ".stages li")}
    assert states == {"teacher": "done", "student-0004": "done", "student-0002": "now", "student-0001": "waiting"}
    where = "const all = document.querySelectorAll('h2'); return all[all.length - 1].getBoundingClientRect().top"
    browser.execute_script("document.querySelector('summary').click(); scrollTo(0, document.body.scrollHeight / 2)")
    place = browser.execute_script(where)
    browser.execute_script("const now = Date.now; Date.now = () => now() + 20000; window.before = true")
    for _ in range(50):
        if browser.execute_script("return window.before === undefined"):
            break
        browser.implicitly_wait(0.1)
        browser.find_elements("id", "none-such")
    else:
        pytest.fail("the page did not reload by itself")
    assert browser.execute_script(where) == pytest.approx(place, abs=2)  # where the reader left it
    assert browser.execute_script("return document.querySelector('details').open")
    for record in lines[4:]:
        (folder.root / "evaluations.jsonl").open("a").write(record)
    page = write_report(folder).read_text()
    assert 'id="status"' not in page
    assert '<p id="state"><strong>Finished</strong>: 3 students, of 4, 2 and 1 steps.</p>' in page


def test_nothing_empty_is_drawn(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """No axes, table or slider before there is something in it, and no distance of the teacher to itself."""
    folder = RunFolder(tmp_path / "begun")
    folder.root.mkdir()
    (folder.root / "recipe.yaml").symlink_to(finished[0] / "recipe.yaml")
    begun = write_report(folder).read_text()
    assert not any(word in begun for word in ("<svg", "<table", 'id="steps"', "<h2>Same noise"))
    assert "<strong>Stopped</strong>: the teacher is next. Run the same command to resume." in begun
    with folder.locked():
        assert "<strong>Running</strong>: the teacher is next." in write_report(folder).read_text()
    lines = (finished[0] / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (folder.root / "evaluations.jsonl").write_text(lines[0])
    first = write_report(folder).read_text()
    assert not any(word in first for word in ("<svg", 'id="steps"', "RMSE", ">student<", 'id="costs"'))
    assert first.count("<tr>") == 2 + 2  # quality, and further metrics


def test_class_folders_name_the_images(tiny_recipe: Path, tmp_path: Path) -> None:
    """Of a class-conditional run the first samples stand above the names of their classes."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / "images" / name / f"{number}.png")
    settings = (f"data.source=folder:{tmp_path}/images", "network.class_conditional=true", "distill.chain=[2, 1]")
    words = [word for each in settings for word in ("--set", each)]
    succeeds("run", tiny_recipe, "--out", tmp_path / "run", *words, *SHORT_EVALUATION)
    captions = read_records(tmp_path / "run", "evaluations")[0]["captions"]
    assert set(captions) == {"cat", "dog"}
    page = (tmp_path / "run" / "report.html").read_text()
    for name in ("cat", "dog"):  # below the images of both step counts
        assert page.count(f"</div>\n<figcaption>{name}</figcaption></figure>") == 2 * captions.count(name)
