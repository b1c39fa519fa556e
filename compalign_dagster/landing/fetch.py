"""img2dataset behind a guard: only http and https, only public addresses, bounded bytes and seconds an answer.

Runs as a script inside img2dataset's own environment, so it imports the standard library alone, and
img2dataset only to start it. Every address is judged after the name was resolved and right before it is
connected to, for every redirect too, so that no name can mean one address when judged and another when used.
Proxies are not used: they resolve names themselves.
"""

import functools
import http.client
import io
import ipaddress
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def refusal(address: str) -> str | None:
    """Why an IP address may not be connected to, or None for a public one.

    Private, loopback, link-local, shared, reserved and multicast addresses are refused, also when an IPv6
    address only wraps them (mapped, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        wrapped += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in _NAT64 else []
        for inner in filter(None, wrapped):
            if why := refusal(str(inner)):
                return f"{ip} wraps {why}"
    return None if ip.is_global and not ip.is_multicast else f"{ip} is not public"


def nothing_is_refused(_address: str) -> None:
    """For tests against a server on loopback."""


class Metered(io.RawIOBase):
    """An answer's bytes, head included, until there are too many or they take too long."""

    def __init__(self, raw: Any, most_bytes: int, most_seconds: float) -> None:
        self.raw, self.most_bytes, self.most_seconds = raw, most_bytes, most_seconds
        self.count, self.until = 0, time.monotonic() + most_seconds

    def readable(self) -> bool:
        """Bytes can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What one read of the connection gives; raises OSError beyond the budget."""
        if time.monotonic() > self.until:
            raise OSError(f"answer took longer than {self.most_seconds} s")
        count = self.raw.readinto(buffer)
        self.count += count
        if self.count > self.most_bytes:
            raise OSError(f"answer is larger than {self.most_bytes} bytes")
        return count

    def close(self) -> None:
        """Close the connection's file too."""
        self.raw.close()
        super().close()


def opener(
    *, refuse: Callable[[str], str | None] = refusal, most_bytes: int, most_seconds: float
) -> urllib.request.OpenerDirector:
    """What opens URLs instead of urllib's own opener: no `file:`, `ftp:`, `data:`, no proxies."""

    class Response(http.client.HTTPResponse):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.fp = io.BufferedReader(Metered(self.fp.detach(), most_bytes, most_seconds))

    connect = functools.partial(connect_to_public, refuse)

    class Plain(http.client.HTTPConnection):
        response_class = Response

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._create_connection = connect

    class Encrypted(http.client.HTTPSConnection):
        response_class = Response

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._create_connection = connect

    class Handler(urllib.request.AbstractHTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Encrypted, request)

        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    made = urllib.request.OpenerDirector()
    for handler in (
        Handler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        made.add_handler(handler)
    return made


def connect_to_public(
    refuse: Callable[[str], str | None],
    address: tuple[str, int],
    timeout: float | None = None,
    _source: Any = None,
    **_more: Any,
) -> socket.socket:
    """A connection to a host none of whose addresses is refused; raises OSError otherwise."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for *_, place in found:
        if why := refuse(str(place[0])):
            raise OSError(f"address refused: {why}")
    trouble: OSError | None = None
    for family, kind, protocol, _, place in found:
        link = socket.socket(family, kind, protocol)
        try:
            link.settimeout(timeout)
            link.connect(place)
        except OSError as error:
            link.close()
            trouble = error
        else:
            return link
    raise trouble or OSError("no address")


def install(order: dict[str, Any]) -> None:
    """Put the guard in the way of every URL that this process opens."""
    urllib.request.install_opener(
        opener(
            refuse=nothing_is_refused if order["allow_private"] else refusal,
            most_bytes=order["most_bytes"],
            most_seconds=order["most_seconds"],
        )
    )


# img2dataset's workers are spawned: each runs this module again, as __mp_main__, before any work.
if __name__ in ("__main__", "__mp_main__"):
    install(json.loads(sys.argv[1]))
if __name__ == "__main__":
    from img2dataset import download  # type: ignore[import-not-found]

    download(**json.loads(sys.argv[1])["download"])
