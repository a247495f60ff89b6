"""The report in a real browser: the slider moves, the images change, nothing is fetched and nothing complains."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import call

pytestmark = pytest.mark.slow


webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "tiny"
    assert call("run", tiny_recipe, "--out", out).exit_code == 0
    return out / "report.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path}",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("width", [1200, 380])
def test_the_slider_moves_and_the_images_change(page: Path, browser: Any, width: int) -> None:  # noqa: ANN401
    browser.set_window_size(width, 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get(page.as_uri())
    slider, count = (browser.find_element("id", name) for name in ("steps", "count"))
    assert count.text == "1 step"
    seen = []
    for _ in range(3):
        pictures = [browser.find_element("id", name) for name in ("teacher", "student")]
        seen.append((count.text, *(picture.get_attribute("src") for picture in pictures)))
        assert all(int(picture.get_property("naturalWidth")) == 71 for picture in pictures)
        slider.send_keys("\ue012")  # arrow left
    assert [text for text, *_ in seen] == ["1 step", "2 steps", "4 steps"]
    assert len({source for _, *sources in seen for source in sources}) == 6
    assert count.text == "8 steps"
    assert "not measured" in browser.find_element("id", "student-says").text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_it_is_one_file_that_needs_no_other(page: Path) -> None:
    text = page.read_text()
    links = [word for word in ('src="http', 'href="http', "@import", "url(http") if word in text]
    assert links == []
    for heading in ("Same noise, fewer steps", "Quality against steps", "Training", "Recipe"):
        assert heading in text
    for name in ("student-0004", "student-0001", "all students", "learning_rate", "diffusers 0."):
        assert name in text
