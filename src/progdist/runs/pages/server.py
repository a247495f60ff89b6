"""The page to play with models on this machine: http.server on 127.0.0.1, one request for images at a time.

    GET /        the page
    POST /draw   JSON {model, seed, steps, ...} to JSON {image, milliseconds, ...}, or {error}

Only this machine can reach it. Requests from other sites are refused by Host, Origin and content type. The page loads
nothing from elsewhere, and its policy forbids it.
"""

import json
import secrets
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from progdist._utils.errors import UserError
from progdist._utils.signals import Interrupted
from progdist.runs.pages.play import Abandoned, DrawRequest, Playable
from progdist.runs.pages.report import template
from progdist.runs.pages.slides import training_images

ADDRESS, HTTP_PORT = "127.0.0.1", 80  # browsers omit this port from an address
LONGEST_SILENCE = 30.0  # seconds without data before a client's connection is closed
PATIENCE, LONGEST_END = 0.2, 1.5  # seconds between checks for waiting clients, and for the last evaluation
LONGEST_BODY = 20_000  # bytes of a request

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PlayServer(ThreadingHTTPServer):
    """Serves the page of some models on a port (0: any free port); a UserError if it cannot be used."""

    def __init__(self, playables: Sequence[Playable], port: int) -> None:
        self.playables, self.drawing, self.stopping = playables, threading.Lock(), threading.Event()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be used ({error}): choose another --port, or 0 for any") from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (as socketserver has it)
        """Print the error of a request, unless the page was only closed or reloaded while it waited."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def hosts(self) -> set[str]:
        """The valid Host headers of this server."""
        names = {ADDRESS, "localhost"}
        return {f"{name}:{self.server_port}" for name in names} | (names if self.server_port == HTTP_PORT else set())

    def page(self, nonce: str) -> str:
        """The page."""
        described = [playable.describe() for playable in self.playables]
        shown = (training_images(playable.run) for playable in self.playables if playable.run)
        return template("play.html").render(models=described, nonce=nonce, training=next(filter(None, shown), None))

    def draw(self, content: object, waits: Callable[[], bool]) -> dict[str, Any]:
        """Make the images of one model, while other requests wait in line.

        Raises:
            Abandoned: the client no longer waits, or the server stops.
            UserError: the request is invalid.
        """
        if not isinstance(content, dict):
            raise UserError("expected a JSON object")
        number = content.get("model")
        if not isinstance(number, int) or not 0 <= number < len(self.playables):
            raise UserError(f"model is {str(number)[:20]}, expected 0 to {len(self.playables) - 1}")
        request = DrawRequest.read(content)

        def wanted() -> bool:
            return not self.stopping.is_set() and waits()

        while not self.drawing.acquire(timeout=PATIENCE):
            if not wanted():
                raise Abandoned
        try:
            return self.playables[number].draw(request, wanted)
        finally:
            self.drawing.release()

    def serve(self, ready: Callable[[str], object]) -> None:
        """Call `ready` with the address, and serve until a signal; a request in progress ends after its evaluation."""
        try:
            ready(self.url)
            self.serve_forever()
        except (Interrupted, KeyboardInterrupt):
            self.stopping.set()
            self.drawing.acquire(timeout=LONGEST_END)
        finally:
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Handler of one request."""

    server_version, sys_version = "progdist", ""
    timeout = LONGEST_SILENCE

    @property
    def play(self) -> PlayServer:
        """The server."""
        return cast(PlayServer, self.server)

    def do_GET(self) -> None:
        """Send the page."""
        if self.headers.get("Host") not in self.play.hosts():
            self._answer(HTTPStatus.FORBIDDEN, {"error": f"this page works only on its machine, at {self.play.url}"})
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "page not found"})
        else:
            nonce = secrets.token_urlsafe(16)
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.play.page(nonce).encode(), nonce)

    def do_POST(self) -> None:
        """Send images."""
        host, length = self.headers.get("Host"), self.headers.get("Content-Length", "")
        origin = self.headers.get("Origin", f"http://{host}")
        if host not in self.play.hosts() or origin != f"http://{host}":
            self._answer(HTTPStatus.FORBIDDEN, {"error": f"this page works only on its machine, at {self.play.url}"})
        elif self.path != "/draw" or self.headers.get_content_type() != "application/json":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "expected /draw with application/json"})
        elif not length.isdecimal() or len(length) > len(str(LONGEST_BODY)) or int(length) > LONGEST_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"expected at most {LONGEST_BODY} bytes"})
        else:
            self._draw(self.rfile.read(int(length)))

    def _draw(self, body: bytes) -> None:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "expected a JSON object"})
            return
        try:
            status, content = HTTPStatus.OK, self.play.draw(request, self._waits)
        except Abandoned:
            self.close_connection = True
            return
        except UserError as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except Exception as error:  # from the model, e.g. torch's out of memory
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": reason}
        self._answer(status, content)

    def _waits(self) -> bool:
        """Whether the page is still connected: a closed connection is readable, but empty."""
        try:
            closed = select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return not closed

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode(), "none")

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", POLICY.format(nonce=nonce)),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal shows only the page's address."""


def has_browser(environment: Mapping[str, str], platform: str) -> bool:
    """Whether this machine can show a browser to the user: not over ssh, and not without a display."""
    remote = any(environment.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    display = platform != "linux" or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return display and not remote


def play(playables: Sequence[Playable], port: int, ready: Callable[[str], object]) -> None:
    """Serve the page of some models until a signal; `ready` is called with its address."""
    PlayServer(playables, port).serve(ready)
