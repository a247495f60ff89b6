"""The page to play with: what it draws is what the models make, it is for this machine alone, and people can use it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from progdist.data.grid import grid_image
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.runs.pages.play import IMAGES, DrawRequest, Playable, open_playables
from progdist.runs.pages.server import PlayServer
from progdist.teachers.own import load
from support.commands import call, refused
from support.png import pixels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server(finished: tuple[Path, Result]) -> Iterator[PlayServer]:
    """Of the class-conditional run: teacher and students of 4, 2 and 1 steps."""
    started = PlayServer(open_playables([finished[0]]), 0)
    thread = threading.Thread(target=started.serve_forever)
    thread.start()
    yield started
    started.shutdown()
    thread.join()
    started.server_close()


def ask(server: PlayServer, body: object, method: str = "POST", path: str = "/draw", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    sent = body if isinstance(body, str) else json.dumps(body)
    usual = {"Content-Type": "application/json"} if method == "POST" else {}
    connection.request(method, path, sent, usual | {name.replace("_", "-"): word for name, word in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("Content-Type") == "application/json" else text


@pytest.mark.parametrize(("number", "name", "steps"), [(0, "teacher", 8), (1, "student-0004", 4)])
def test_it_draws_what_the_model_makes(
    finished: tuple[Path, Result], server: PlayServer, number: int, name: str, steps: int
) -> None:
    """Of the same seed, class and steps, what `progdist sample` makes."""
    status, drawn = ask(server, {"model": number, "seed": 5, "steps": steps, "label": 7})
    options = SamplingOptions(steps, IMAGES, 7, 5)
    images, _, _ = generate_images(load(finished[0] / name), options, lambda text: None)
    assert (status, drawn["images"], drawn["evaluations"]) == (200, IMAGES, steps)
    assert drawn["milliseconds"] > 0
    np.testing.assert_array_equal(pixels(drawn["image"]), np.asarray(grid_image(images, 4)))
    other = ask(server, {"model": number, "seed": 5, "steps": steps})[1]
    assert other["image"] != drawn["image"]  # all classes in turn


def test_another_sampler_of_the_teacher(server: PlayServer) -> None:
    asked = {"model": 0, "seed": 0, "steps": 4}
    images = {method: ask(server, asked | {"method": method})[1]["image"] for method in ("ddim", "dpmpp")}
    assert images["ddim"] != images["dpmpp"]


GOOD = {"model": 1, "seed": 0, "steps": 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 9}, "model is 9, expected 0 to 3"),
        ({"model": -1}, "expected 0 to 3"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to"),
        ({"seed": 2**32}, "from 0 to 4294967295"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": True}, "steps is True"),
        ({"steps": 4096}, "steps is 4096, expected 1 to 1024"),
        ({"label": 10}, "label 10 is out of range"),
        ({"label": "seven"}, "label seven is not a class of the model"),
        ({"label": "7" * 2000}, "shorten it"),
        ({"label": [7]}, "expected a whole number"),
        ({"method": "dpmpp"}, "method is 'dpmpp', expected ddim"),
        ({"model": 0, "method": "__class__"}, "expected ddim or dpmpp"),
        ({"prompt": ["a"]}, "expected a prompt of at most"),
        ({"prompt": "a" * 1001}, "shorten it"),
        ({"guidance": -3}, "guidance is -3, expected a positive number"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": 3}, "takes no guidance scale"),
    ],
)
def test_what_cannot_be_drawn_is_refused(server: PlayServer, change: dict[str, Any], said: str) -> None:
    status, told = ask(server, GOOD | change)
    assert status == 400
    assert said in told["error"]


def test_only_this_machine_and_this_page_are_answered(server: PlayServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "", "GET", "/")[0] == 200
    assert ask(server, "", "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "", "GET", "/", Host="elsewhere.org")[0] == 403  # a name that someone has bent to 127.0.0.1
    assert ask(server, GOOD, Host="elsewhere.org")[0] == 403
    assert ask(server, GOOD, Origin="https://elsewhere.org")[0] == 403
    assert ask(server, GOOD, Content_Type="text/plain")[0] == 404  # what other sites' pages may send unasked
    assert ask(server, "", "GET", "/etc/passwd")[0] == 404
    assert ask(server, "", "GET", "/../progdist.json")[0] == 404
    assert ask(server, "{", "POST")[0] == 400
    assert ask(server, "[" * 5000, "POST")[0] == 400
    assert ask(server, [GOOD])[0] == 400
    assert ask(server, GOOD | {"prompt": "a" * 30_000})[0] == 413
    assert ask(server, GOOD)[0] == 200


def test_one_drawing_at_a_time(server: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    draw = Playable.draw

    def counted(self: Playable, request: DrawRequest, wanted: Callable[[], bool]) -> dict[str, Any]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return draw(self, request, wanted)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(Playable, "draw", counted)
    threads = [threading.Thread(target=ask, args=(server, GOOD)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_a_person_plays(server: PlayServer, browse: Any, width: int, dark: bool) -> None:  # noqa: ANN401
    browser = browse(server.url, width, dark=dark)

    def drawn() -> list[str]:
        for _ in range(600):
            browser.implicitly_wait(0.1)
            if not browser.find_elements("css selector", ".card.busy"):
                return [image.get_attribute("src") for image in browser.find_elements("css selector", ".card img")]
        pytest.fail("the drawing does not end")

    first = drawn()
    assert len(set(first)) == 4
    assert all(source.startswith("data:image/png") for source in first)
    said = [small.text for small in browser.find_elements("css selector", ".card small")]
    assert all(" ms for 16 images" in text for text in said)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(22, 20, 18)" if dark else "rgb(255, 255, 255)")
    for name, shown in (("class", True), ("prompt", False), ("guidance", False)):
        assert browser.find_element("id", name).is_displayed() == shown
    steps = browser.find_elements("css selector", ".card input")
    steps[1].send_keys("\ue012")  # arrow left: 2 steps in place of 4
    second = drawn()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True, True]
    assert "distilled for 4" in browser.find_elements("css selector", ".card small")[1].text
    browser.find_element("id", "new").click()
    third = drawn()
    assert not any(a == b for a, b in zip(second, third, strict=True))
    browser.find_element("css selector", "#class option[value='3']").click()
    assert not any(a == b for a, b in zip(third, drawn(), strict=True))
    assert browser.get_log("browser") == []


def test_the_command_says_where_it_is_and_ends_cleanly(finished: tuple[Path, Result]) -> None:
    student = str(finished[0] / "student-0001")
    command = [sys.executable, "-m", "progdist", "play", student, "--port", "0", "--no-browser"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"opening {student}\n"
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=600)
        assert (process.returncode, rest, errors) == (0, "", "")


def test_mistakes_are_one_line(finished: tuple[Path, Result], server: PlayServer, tmp_path: Path) -> None:
    student = finished[0] / "student-0001"
    refused(call("play", tmp_path / "nothing", "--no-browser"), "is not a folder: it does not exist")
    refused(call("play", student, "--no-browser", "--port", server.server_port), "choose another --port")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text((finished[0] / "recipe.yaml").read_text())
    refused(call("play", tmp_path / "begun", "--no-browser"), "has no finished model yet")
