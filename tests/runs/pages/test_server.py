"""What the server of the page to play with makes of requests that no page of its own sends; no model is needed."""

import http.client
import json
import os
import signal
import socket
import struct
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from progdist import Denoiser, UserError
from progdist._utils.signals import interruptible
from progdist.models.model import Model
from progdist.runs.pages import play as play_module
from progdist.runs.pages import server as server_module
from progdist.runs.pages.play import DrawRequest, Playable
from progdist.runs.pages.server import LONGEST_SILENCE, PlayServer, _Handler, has_browser
from support.commands import succeeds


@pytest.fixture
def server() -> Iterator[PlayServer]:
    with PlayServer([], 0) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def test_a_page_that_is_closed_while_it_waits_is_no_error(
    server: PlayServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its connection is reset before the images are there: nothing is said in the terminal, and others are served."""
    begun, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def draw(told: object, waits: object) -> dict[str, Any]:
        begun.set()
        closed.wait(60)
        return {"image": "a" * 2**20}

    shutdown_request = server.shutdown_request
    monkeypatch.setattr(server, "draw", draw)
    monkeypatch.setattr(server, "shutdown_request", lambda request: (shutdown_request(request), ended.set()))
    head = f"POST /draw HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.server_port)) as page:
        page.sendall(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        assert begun.wait(60)
        page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    closed.set()
    assert ended.wait(60)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def playing(tiny_model: Callable[..., Denoiser]) -> Iterator[tuple[PlayServer, list[int], threading.Event]]:
    """A server with a model, its evaluations so far, and what the second of them waits for."""
    model, evaluations, go = Model(tiny_model()), [], threading.Event()

    def count(module: object, inputs: object) -> None:
        evaluations.append(1)
        if len(evaluations) == 2:
            go.wait(60)

    with PlayServer([Playable("tiny", model, 4)], 0) as server:
        model.denoiser.network.register_forward_pre_hook(count)
        yield server, evaluations, go


BODY = b'{"model": 0, "seed": 1, "steps": 1024}'


def ask_for_a_drawing(server: PlayServer) -> socket.socket:
    page = socket.create_connection(("127.0.0.1", server.server_port))
    head = f"POST /draw HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type: application/json\r\n"
    page.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    return page


def wait_until(ready: Callable[[], bool]) -> None:
    for _ in range(6000):
        if ready():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


def test_a_drawing_whose_page_has_gone_is_dropped(
    playing: tuple[PlayServer, list[int], threading.Event], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 1,024 evaluations two are made; the next page is served at once."""
    server, evaluations, go = playing
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = ask_for_a_drawing(server)
    wait_until(lambda: len(evaluations) == 2)
    waiting = ask_for_a_drawing(server)  # in line, and gone before it is its turn
    waiting.close()
    page.close()
    go.set()
    with server.drawing:  # it is free
        assert len(evaluations) == 2
    server.shutdown()
    assert server.playables[0].draw(DrawRequest(1, 4))["evaluations"] == 4  # nothing of it stays with the model
    assert capfd.readouterr() == ("", "")


def test_a_signal_ends_a_drawing_of_many_steps(playing: tuple[PlayServer, list[int], threading.Event]) -> None:
    server, evaluations, go = playing
    answers: list[bytes] = []

    def stop() -> None:
        with ask_for_a_drawing(server) as page:
            wait_until(lambda: len(evaluations) == 2)
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(server.stopping.is_set)
            go.set()
            answers.append(page.recv(1))

    asking = threading.Thread(target=stop, daemon=True)
    with interruptible():
        server.serve(lambda url: asking.start())
    asking.join(60)
    assert (len(evaluations), answers) == (2, [b""])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(), "RuntimeError:"),
        (RuntimeError("out of\nmemory"), "RuntimeError: out of memory"),
        (KeyError("a"), "KeyError: 'a'"),
        (IndexError("no row"), "IndexError: no row"),
        (ValueError("of the model"), "ValueError: of the model"),
    ],
)
def test_what_goes_wrong_in_a_model_is_said_in_one_line(
    server: PlayServer, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def draw(told: object, waits: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(server, "draw", draw)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("POST", "/draw", "{}", {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (500, {"error": said})
    connection.close()


def test_a_length_of_thousands_of_digits_is_too_long(server: PlayServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    sent = {"Content-Type": "application/json", "Content-Length": "9" * 5000}
    connection.request("POST", "/draw", headers=sent)
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()


def test_another_port_is_told_the_right_one(server: PlayServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", "/", headers={"Host": "localhost:1"})
    assert server.url in json.loads(connection.getresponse().read())["error"]
    connection.close()


def test_port_80_is_left_out_of_addresses(server: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.hosts() == {f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost")}
    monkeypatch.setattr(server, "server_port", 80)
    assert {"127.0.0.1", "localhost", "localhost:80"} < server.hosts()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /draw HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                                  b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{"])  # fmt: skip
def test_a_client_that_says_nothing_is_not_waited_for(
    sent: bytes, server: PlayServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither before its request nor within: its connection is closed, and nothing is said in the terminal."""
    assert _Handler.timeout == LONGEST_SILENCE
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as silent:
        silent.sendall(sent.replace(b"%d", str(server.server_port).encode()))
        assert silent.recv(1) == b""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("environment", "platform", "found"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.1 50000 10.0.0.2 22"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/ttys001"}, "darwin", False),
    ],
)
def test_a_browser_is_opened_where_the_person_sees_it(environment: dict[str, str], platform: str, found: bool) -> None:
    assert has_browser(environment, platform) == found


@pytest.mark.parametrize(("words", "opened"), [((), False), (("--browser",), True), (("--no-browser",), False)])
def test_the_command_says_how_to_see_the_page_from_elsewhere(
    words: tuple[str, ...], opened: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over ssh, unless the browser is asked for or refused."""
    urls: list[str] = []
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 22")
    monkeypatch.setattr(webbrowser, "open", urls.append)
    monkeypatch.setattr(play_module, "open_playables", list)
    monkeypatch.setattr(server_module, "play", lambda playables, port, ready: ready(f"http://127.0.0.1:{port}/"))
    said = succeeds("play", tmp_path, "--port", 8701, *words).stdout
    assert urls == (["http://127.0.0.1:8701/"] if opened else [])
    assert ("ssh -L 8701:127.0.0.1:8701 " in said) == (not words)


def test_a_guidance_beyond_all_floats_is_refused() -> None:
    with pytest.raises(UserError, match="expected a positive number up to 1000"):
        DrawRequest.read({"seed": 0, "steps": 4, "guidance": 10**400})
