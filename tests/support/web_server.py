"""A web server on loopback with good and hostile answers, for what fetches lists of URLs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.shard_builder import picture


class Web(ThreadingHTTPServer):
    """The server; `asked` lists the paths it was asked for, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path, by another name of this machine if wanted."""
        return f"http://{host}:{self.server_port}{path}"


@contextmanager
def running() -> Iterator[Web]:
    """A server that answers until the block is left."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        what, _, argument = self.path.lstrip("/").partition("/")
        answers: dict[str, Callable[[str], None]] = {
            "picture": lambda seed: self.whole(picture(int(seed))),
            "status": lambda code: self.send_error(int(code)),
            "large": lambda size: self.whole(b"x" * int(size)),
            "to": self.redirect,
            "cut": lambda _: self.cut(),
            "drip": lambda _: self.drip(),
            "robots": lambda _: self.whole(picture(0), **{"X-Robots-Tag": "noai"}),
        }
        answers.get(what, lambda _: self.send_error(404))(argument)

    def whole(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(picture(1))

    def drip(self) -> None:
        """One byte of the head at a time, for ever."""
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 60:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing is printed into the tests' output."""
