"""The page of a run whose students take a guidance scale: a slider of scales, and captions beside the images."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.data.grid import write_grid
from progdist.data.images import to_uint8
from progdist.diffusion.sampler import sample
from progdist.methods.guidance import Input
from progdist.runs.evaluator import SHOWN, guidance_scales
from progdist.runs.folder import RunFolder
from progdist.runs.pages.report import write_report
from progdist.runs.pages.slides import LARGEST_SINGLE, single_images
from progdist.teachers.own import load
from support.commands import SHORT_EVALUATION, UNTRAINED, read_records, succeeds
from support.text import write_sd

SLOW = pytest.mark.slow
ODD = 'a <b>bold</b> "eight" & a caption of many words, such as captioning networks write: ' + "a lighthouse, " * 9
CAPTIONS = ["a handwritten seven", "the digit three, drawn", ODD]
SHORT = ("--steps", 4, "--start", 8, "--updates", 2, "--batch", 8, *SHORT_EVALUATION, *UNTRAINED)
"""Of a chain 8 -> 4."""


@pytest.mark.parametrize(
    ("guidance", "measured", "scales"),
    [
        (Input(1, 15), 7.5, (1, 5.7, 7.5, 15)),
        (Input(1, 8), 7.5, (1, 3.3, 7.5)),
        (Input(1, 5), 5, (1, 2.3, 5)),
        (Input(10.4, 10.5), 10.4, (10.4, 10.5)),
    ],
)
def test_the_scales_that_are_shown(guidance: Input, measured: float, scales: tuple[float, ...]) -> None:
    assert guidance_scales(guidance, measured) == scales


@pytest.mark.parametrize(("count", "shape"), [(64, (1, 4, 6)), (20, (3, 8, 8)), (3, (3, 200, 300))])
def test_single_images_are_those_of_the_grid(count: int, shape: tuple[int, int, int], tmp_path: Path) -> None:
    images = torch.rand(count, *shape) * 2 - 1
    write_grid(images, tmp_path / "grid.png")
    found, width, height = single_images(tmp_path / "grid.png", 0, -(-count // SHOWN))
    assert len(found) == SHOWN
    assert (width, height) == ((shape[2], shape[1]) if max(shape) < LARGEST_SINGLE else (192, 128))
    assert ("image/png" in found[0]) == (max(shape) < LARGEST_SINGLE)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of captions; students take a scale from 1 to 8. Tests leave it as it is."""
    pytest.importorskip("transformers")
    place, draw = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    (place / "pairs").mkdir()
    for number in range(12):
        pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pairs" / f"{number:02d}.png")
        (place / "pairs" / f"{number:02d}.txt").write_text(CAPTIONS[number % 3])
    options = (*SHORT, "--conversion-updates", 2, "--guidance", "1:8", "--set", "evaluate.precision=float32")
    data = f"captions:{place / 'pairs'}"
    succeeds("distill", write_sd(place / "teacher"), "--data", data, *options, "--out", place / "run")
    return place / "run"


@SLOW
def test_every_scale_is_sampled_from_the_noise_of_the_measurement(text_run: Path) -> None:
    """The grids are the student's images of the record's captions, from the first of the noise that is measured."""
    record = next(record for record in read_records(text_run, "evaluations") if record["model"] == "student")
    assert (record["guidance"], record["guidance_grids"]) == (7.5, [1.0, 3.3, 7.5])
    assert len(record["captions"]) == SHOWN
    assert set(record["captions"]) == {caption.strip() for caption in CAPTIONS}
    folder, model = RunFolder(text_run), load(text_run / "student-0004")
    noise = torch.randn(16, *model.shape, generator=generator(0, EVALUATION_NOISE))[:SHOWN]
    assert model.autoencoder is not None
    for scale in record["guidance_grids"]:
        condition: dict[str, Any] = model.conditions(scale, record["captions"])({"labels": torch.arange(SHOWN)})
        made = to_uint8(model.autoencoder.decode(sample(model.denoiser, noise, 4, **condition)))
        path = folder.grid("student", 4, None if scale == 7.5 else scale)
        kept = np.asarray(Image.open(path), dtype=int)[:8]
        for place, image in enumerate(made):
            assert np.abs(kept[:, 9 * place : 9 * place + 8] - image).max() <= 1  # captions are kept as halves
    assert not list((text_run / "samples").glob("converted-*-guidance-*"))  # the page compares with the teacher itself
    assert list((text_run / "samples").glob("teacher-*-guidance-*"))


@SLOW
def test_captions_are_text(text_run: Path) -> None:
    page = (text_run / "report.html").read_text()
    assert "<b>bold" not in page
    assert f"<figcaption>{html.escape(ODD.strip()).replace('&quot;', '&#34;')}</figcaption>" in page


def shown(browser: Any, place: str = ".singles img") -> list[Any]:  # noqa: ANN401
    return [each for each in browser.find_elements("css selector", place) if each.is_displayed()]


@SLOW
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_the_slider_moves_and_the_images_change(text_run: Path, browse: Any, width: int, dark: bool) -> None:  # noqa: ANN401
    browser = browse((text_run / "report.html").as_uri(), width, dark=dark)
    slider, scale = (browser.find_element("id", name) for name in ("guidance", "scale"))
    assert (slider.get_attribute("aria-label"), scale.text) == ("guidance", "7.5")  # the one that is measured
    assert "RMSE" in shown(browser, ".legend")[0].text
    seen = {}
    for keys in ("\ue014", "\ue012", "\ue012"):  # arrow right, where there is none, then left
        slider.send_keys(keys)
        images = shown(browser)
        assert len(images) == 3 * SHOWN  # teacher by two samplers, and student
        seen[scale.text] = [image.get_attribute("src") for image in images]
        assert slider.get_attribute("aria-valuetext") == scale.text
        assert f"guidance {scale.text}" in images[0].get_attribute("alt")
    assert list(seen) == ["7.5", "3.3", "1"]
    assert len({tuple(sources) for sources in seen.values()}) == 3
    assert "RMSE" not in shown(browser, ".legend")[0].text  # of the scale that is measured alone
    browser.execute_script("document.getElementById('costs').scrollIntoView()")
    assert slider.rect["y"] < browser.execute_script("return scrollY")  # it stays with the images
    browser.refresh()
    assert browser.find_element("id", "scale").text == "1"  # where the reader left it
    browser.find_element("id", "steps").send_keys("\ue014")  # arrow right: more steps
    assert len(shown(browser)) == SHOWN  # at 8 steps the teacher alone
    captions = shown(browser, ".cards figcaption")
    assert [each.text for each in captions] == read_records(text_run, "evaluations")[0]["captions"]
    fits = "return [...document.querySelectorAll('html, figure, figcaption')].every(e => e.scrollWidth <= innerWidth)"
    assert browser.execute_script(fits)
    assert browser.get_log("browser") == []


@SLOW
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_scripts_the_scale_that_is_measured_is_there(text_run: Path, browse: Any) -> None:  # noqa: ANN401
    browser = browse((text_run / "report.html").as_uri(), 360, scripts=False)
    assert len(shown(browser)) == (3 + 2) * SHOWN
    assert not browser.find_element("id", "guidance").is_displayed()
    assert "Images at guidance 7.5" in browser.find_element("tag name", "body").text


@SLOW
def test_classes_with_guidance_scales_and_a_run_of_an_older_version(stock: Callable[..., Path], tmp_path: Path) -> None:
    """Images of classes say which; records without captions and scales make the page without a slider of scales."""
    out = tmp_path / "run"
    succeeds("distill", stock(classes=11), "--data", "digits", *SHORT, "--guidance", "1:4", "--set",
             "evaluate.guidance=2", "--out", out)  # fmt: skip
    record = read_records(out, "evaluations")[-1]
    assert (record["guidance"], record["guidance_grids"]) == (2, [1, 2, 4])
    page = (out / "report.html").read_text()
    assert 'data-scales="1 2 4"' in page
    assert page.count("<figcaption>class ") == SHOWN * 3 * 2  # scales and step counts
    older = [
        {key: known for key, known in record.items() if key not in ("captions", "guidance", "guidance_grids")}
        for record in read_records(out, "evaluations")
    ]
    (out / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in older))
    page = write_report(RunFolder(out)).read_text()
    assert 'id="steps"' in page
    assert 'id="guidance"' not in page
    assert "<figcaption>class " not in page
    assert page.count(' alt="images of ') == 5  # at 4 steps three, at 8 teacher and converted
