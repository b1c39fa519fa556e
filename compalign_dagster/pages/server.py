"""A read-only server of the store's pages on loopback, because browsers do not follow file links.

GET and HEAD of pages and pictures by store key, and of pages that are drawn when asked for (`browse.py`);
nothing else of the store is served or listed, and a request must name this machine in its Host header (a
foreign name that resolves to loopback is DNS rebinding). What does not belong here: drawing pages.
"""

import json
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.pages.index import index_page
from compalign_dagster.pages.render import CONTENT_SECURITY_POLICY
from compalign_dagster.store import Store

HOST = "127.0.0.1"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".json": "application/json; charset=utf-8",
}
_LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
_POLICY = f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"
_LATEST = "decisions/latest/"
Draw = Callable[[str, str], bytes | None]
"""Path and query of a request to a page, or None for a path it does not know; `InputError` for what is not there."""
_IDLE_SECONDS = 30

log = logging.getLogger(__name__)


class PageServer(ThreadingHTTPServer):
    """The server of one store; stop it with `shutdown()`."""

    daemon_threads = True

    def __init__(self, store: Store, port: int, draw: Draw) -> None:
        self.store, self.draw = store, draw
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.server_address[1]}"


def serve(store: Store, port: int, draw: Draw = lambda path, query: None) -> PageServer:
    """A server bound to `port` of 127.0.0.1 (0: any free one); `serve_forever()` of it answers requests."""
    try:
        return PageServer(store, port, draw)
    except OSError as error:
        raise InputError(
            f"port {port} of {HOST}",
            expected="to be free for the page server",
            found=error.strerror or str(error),
            remedy="Stop what uses it, or set COMPALIGN_PAGES_PORT.",
        ) from None


def servable(path: str) -> str | None:
    """The store key that a request path names, or None when it names nothing this server serves."""
    key = unquote(path.removeprefix("/"), errors="replace")
    parts = key.split("/")
    unsafe = any(part == "" or part.startswith(".") for part in parts) or not key.isprintable()
    if unsafe or "\\" in key or "\ufffd" in key or not key.endswith(tuple(_TYPES)):
        return None
    return key


def newest(store: Store) -> Iterator[dict[str, Any]]:
    """The newest artifact of every kind and partition, with the paths of its pages."""
    facts: dict[str, str] = {}
    for item in store.list(_LATEST):  # in key order: the last version of a name wins
        facts[item.key.rpartition("/")[0]] = item.key
    for key in facts.values():
        manifest_key = json.loads(store.read(key))["value"]["manifest"]
        try:
            manifest = json.loads(store.read(manifest_key))
        except FileNotFoundError:
            log.warning("the newest artifact %s is gone", manifest_key)
            continue
        folder = manifest_key.rpartition("/")[0]
        yield {
            **{name: manifest[name] for name in ("kind", "partition", "created", "data_version")},
            "links": [
                (name, "/" + quote(f"{folder}/{entry['path']}"))
                for name, entry in sorted(manifest["files"].items())
                if entry.get("view") and name.endswith(".html")
            ],
        }


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "compalign-pages"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse_method(self) -> None:
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "This server only reads: GET and HEAD.", allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method  # noqa: N815

    def _answer(self, *, body: bool) -> None:
        if not self._is_local():
            self._text(HTTPStatus.FORBIDDEN, "Open this page under 127.0.0.1.", body=body)
            return
        try:
            asked = urlsplit(self.path)
        except ValueError as error:
            self._text(HTTPStatus.BAD_REQUEST, f"This is no address: {error}.", body=body)
            return
        try:
            drawn = self.server.draw(asked.path, asked.query)
            kind, data = (_TYPES[".html"], drawn) if drawn is not None else self._page(asked.path)
        except InputError as error:
            self._text(HTTPStatus.NOT_FOUND, str(error), body=body)
        except OSError:  # nothing there, or a name that is too long
            self._text(HTTPStatus.NOT_FOUND, "There is no such page.", body=body)
        except CompalignError as error:
            self._text(HTTPStatus.SERVICE_UNAVAILABLE, str(error), body=body)
        else:
            self._head(HTTPStatus.OK, kind, len(data))
            if body:
                self.wfile.write(data)

    def _page(self, path: str) -> tuple[str, bytes]:
        """Content type and bytes of a request path, read whole before anything is sent."""
        if path in ("", "/"):
            return _TYPES[".html"], index_page(list(newest(self.server.store)))
        key = servable(path)
        if key is None:
            raise FileNotFoundError(path)
        return _TYPES["." + key.rpartition(".")[2]], self.server.store.read(key)

    def _is_local(self) -> bool:
        """Whether the Host header names this machine, whatever the port (it may be forwarded)."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        name, colon, port = hosts[0].strip().lower().rpartition(":")
        if not colon or port.endswith("]"):
            name, port = hosts[0].strip().lower(), ""
        return name in _LOCAL_NAMES and (not port or port.isdigit())

    def _text(self, status: HTTPStatus, text: str, *, allow: str = "", body: bool = True) -> None:
        data = f"{text}\n".encode()
        self._head(status, "text/plain; charset=utf-8", len(data), allow)
        if body:
            self.wfile.write(data)

    def _head(self, status: HTTPStatus, kind: str, size: int, allow: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cache-Control", "no-cache")
        if allow:
            self.send_header("Allow", allow)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
