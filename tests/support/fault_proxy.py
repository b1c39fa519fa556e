"""A proxy before an S3 server that does to chosen requests what networks and servers do.

    with FaultProxy(endpoint) as proxy:
        proxy.inject("put_new", cut_answer, key="manifest", first=1)

Kinds of requests: get, head, list, put (unconditional), put_new (with If-None-Match), create_upload, part, complete,
abort, delete.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

HOPS = {"connection", "expect", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Request:
    """One request on its way, and the means to answer it."""

    kind: str
    key: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    _handler: BaseHTTPRequestHandler = field(repr=False)
    _upstream: str = field(repr=False)

    def forward(self) -> "Answer":
        """Let the server answer; the client has not seen it yet."""
        connection = HTTPConnection(self._upstream, timeout=60)
        connection.request(self.method, self.path, self.body, self.headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOPS}
        if self.method != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        return Answer(answer.status, headers, body)

    def send_head(self, answer: "Answer") -> None:
        """Send the status and headers of an answer."""
        self._handler.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def send(self, data: bytes) -> None:
        """Send a piece of a body."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def reset(self) -> None:
        """Break the connection without a goodbye."""
        linger = struct.pack("ii", 1, 0)
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._handler.close_connection = True
        self._handler.connection.close()


@dataclass
class Answer:
    """What the server, or the proxy in its place, has to say."""

    status: int
    headers: dict[str, str]
    body: bytes


Action = Callable[[Request], None]


def pass_on(request: Request) -> None:
    """What happens without a rule."""
    answer = request.forward()
    request.send_head(answer)
    request.send(answer.body)


def refuse(status: int, code: str, message: str = "no") -> Action:
    """Answer in the server's place; it sees nothing."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()

    def act(request: Request) -> None:
        request.send_head(Answer(status, {"Content-Length": str(len(body)), "Content-Type": "application/xml"}, body))
        request.send(b"" if request.method == "HEAD" else body)

    return act


slow_down = refuse(503, "SlowDown")
broken = refuse(500, "InternalError")
denied = refuse(403, "AccessDenied")
conflict = refuse(409, "ConditionalRequestConflict")


def reset(request: Request) -> None:
    """Break the connection; the server sees nothing."""
    request.reset()


def cut_answer(request: Request) -> None:
    """Let the server do it and break the connection: the acknowledgement is lost."""
    request.forward()
    request.reset()


def lose_to_error(request: Request) -> None:
    """Let the server do it and say that it failed."""
    request.forward()
    broken(request)


def cut_body(request: Request) -> None:
    """Send half of a body, then break the connection."""
    answer = request.forward()
    request.send_head(answer)
    request.send(answer.body[: len(answer.body) // 2])
    request.reset()


def short_body(request: Request) -> None:
    """Send half of a body, then close the connection as if all were well."""
    answer = request.forward()
    request.send_head(answer)
    request.send(answer.body[: len(answer.body) // 2])
    request._handler.close_connection = True


def dribble(seconds: float, pieces: int = 20) -> Action:
    """Send a body in small pieces, for so long."""

    def act(request: Request) -> None:
        answer = request.forward()
        request.send_head(answer)
        size = max(1, -(-len(answer.body) // pieces))
        for at in range(0, len(answer.body), size):
            time.sleep(seconds / pieces)
            request.send(answer.body[at : at + size])

    return act


def stall(seconds: float) -> Action:
    """Send half of a body, then nothing for so long."""

    def act(request: Request) -> None:
        answer = request.forward()
        request.send_head(answer)
        request.send(answer.body[: len(answer.body) // 2])
        time.sleep(seconds)
        request.reset()

    return act


def silence(seconds: float) -> Action:
    """Let the server do it and say nothing for so long."""

    def act(request: Request) -> None:
        request.forward()
        time.sleep(seconds)
        request.reset()

    return act


def without(header: str) -> Action:
    """Take a header away: a server that does not know it."""

    def act(request: Request) -> None:
        request.headers = {name: value for name, value in request.headers.items() if name.lower() != header.lower()}
        pass_on(request)

    return act


def first_do(work: Callable[[], object]) -> Action:
    """Do something behind the client's back, then pass the request on."""

    def act(request: Request) -> None:
        work()
        pass_on(request)

    return act


@dataclass
class _Rule:
    kind: str
    key: re.Pattern[str]
    action: Action
    skip: int
    left: int | None


class FaultProxy:
    """The proxy; `endpoint` is its URL, `log` the (kind, key) of every request in the order of arrival."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self.log: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                proxy._handle(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: `log` has it."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that gives up breaks its connection; that is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def inject(self, kind: str, action: Action, *, key: str = "", skip: int = 0, first: int | None = 1) -> "FaultProxy":
        """Do this to the `first` requests of this kind and key (None: to all) after leaving `skip` of them alone."""
        with self._lock:
            self._rules.append(_Rule(kind, re.compile(key), action, skip, first))
        return self

    def heal(self) -> None:
        """Forget all rules and the log."""
        with self._lock:
            self._rules.clear()
            self.log.clear()

    def count(self, kind: str, key: str = "") -> int:
        """How many requests of this kind came for keys that match."""
        return sum(1 for seen, name in self.log if seen == kind and re.search(key, name))

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in HOPS}
        address = urlsplit(handler.path)
        bucket_and_key = unquote(address.path).lstrip("/").partition("/")
        query = parse_qs(address.query, keep_blank_values=True)
        kind = _kind(handler.command, bucket_and_key[2], query, headers)
        key = bucket_and_key[2] or query.get("prefix", [""])[0]
        request = Request(kind, key, handler.command, handler.path, headers, body, handler, self._upstream)
        self._action(kind, key)(request)

    def _action(self, kind: str, key: str) -> Action:
        with self._lock:
            self.log.append((kind, key))
            for rule in self._rules:
                if rule.kind != kind or not rule.key.search(key) or rule.left == 0:
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                if rule.left is not None:
                    rule.left -= 1
                return rule.action
        return pass_on


def _kind(method: str, key: str, query: dict[str, list[str]], headers: dict[str, str]) -> str:
    names = {name.lower() for name in headers}
    if method == "PUT":
        return "part" if "uploadId" in query else "put_new" if "if-none-match" in names else "put"
    if method == "POST":
        return "create_upload" if "uploads" in query else "complete" if "uploadId" in query else "delete"
    if method == "DELETE":
        return "abort" if "uploadId" in query else "delete"
    return method.lower() if key else "list"
