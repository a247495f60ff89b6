"""What the server of the page to play with makes of requests that no page of its own sends; no model is needed."""

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from progdist import UserError
from progdist.runs.pages.play import Wanted
from progdist.runs.pages.server import PlayServer


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

    def draw(told: object) -> dict[str, Any]:
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


def test_a_guidance_beyond_all_floats_is_refused() -> None:
    with pytest.raises(UserError, match="expected a positive number up to 1000"):
        Wanted.read({"seed": 0, "steps": 4, "guidance": 10**400})
