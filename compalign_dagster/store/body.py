"""An object of a bucket as a stream that survives broken connections."""

import io
import re
import time
from typing import Any, BinaryIO

from botocore.exceptions import FlexibleChecksumError

from compalign_dagster.store.base import StoreError, TransientStoreError
from compalign_dagster.store.failures import FAILURES, code_of, explain, said

_BUFFER = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PIECE = 1 << 15  # asked of the client at once: what it holds of a piece when the connection breaks is lost
_STALLS = 4  # reconnections in a row that bring no byte
_FIRST_PAUSE = 0.1  # s before the second of them in a row, then doubling


class Body(io.RawIOBase):
    """Reads forward from an offset; a body that breaks is asked for again from where it broke.

    Every later request is bound to the ETag of the first answer, so that the bytes are of one object or there is an
    `ObjectChangedError`. Memory is the caller's buffer.
    """

    def __init__(self, client: Any, place: dict[str, str], url: str, offset: int, end: int | None, stamp: str | None):
        self._client, self._place, self._url = client, place, url
        self._at, self._last, self._stamp = offset, end, stamp  # end: exclusive
        self._stalls = 0
        self._answer: Any = None
        self._left = self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._left:
            try:
                data = self._answer.read(min(len(buffer), self._left, _PIECE))
            except (*FAILURES, OSError) as error:
                self._resume(error)
                continue
            if data:
                buffer[: len(data)] = data
                self._at, self._left, self._stalls = self._at + len(data), self._left - len(data), 0
                return len(data)
            self._resume(EOFError())
        self._check()
        return 0

    def _check(self) -> None:
        """At its end the client compares an object that came in one answer with its stored checksum."""
        if self._answer is not None and not self._answer.closed:
            try:
                self._answer.read(1)
            except FlexibleChecksumError:
                raise self._damaged("bytes that do not have its checksum") from None

    def close(self) -> None:
        if not self.closed and self._answer is not None:
            self._answer.close()
        super().close()

    def _resume(self, error: Exception) -> None:
        self._answer.close()
        if self._stalls == _STALLS:
            raise TransientStoreError(
                f"read {self._url}",
                expected="the rest of the object",
                found=f"a connection that breaks at byte {self._at} ({type(error).__name__})",
                remedy="Nothing is damaged: check the network and the endpoint, then run again.",
            ) from None
        if self._stalls:
            time.sleep(_FIRST_PAUSE * 2 ** (self._stalls - 1))
        self._stalls += 1
        left = self._ask()
        if left != self._left:
            raise self._damaged(f"{left} bytes left of it instead of {self._left}")

    def _ask(self) -> int:
        """Send a request; the number of bytes that will come."""
        request = dict(self._place)
        if self._at or self._last is not None:
            request["Range"] = f"bytes={self._at}-" if self._last is None else f"bytes={self._at}-{self._last - 1}"
        if self._stamp is not None:
            request["IfMatch"] = f'"{self._stamp}"'
        try:
            answer = self._client.get_object(**request)
            self._answer = answer["Body"]
            length, etag = said(answer, "ContentLength", "ETag")
        except FAILURES as error:
            if code_of(error) == "InvalidRange":
                return 0
            raise explain(error, "read", self._url, self._client) from None
        if "Range" in request and not self._is_range(answer.get("ContentRange", ""), length):
            self._answer.close()
            raise self._damaged("the server did not keep to the range that was asked for")
        self._stamp = self._stamp or etag.strip('"')
        return length

    def _is_range(self, told: str, length: int) -> bool:
        """Whether an answer is what was asked for: up to its end, or to the object's where that comes first."""
        found = _RANGE.fullmatch(told)
        if found is None:
            return False
        first, last, size = map(int, found.groups())
        end = size if self._last is None else min(self._last, size)
        return first == self._at and last + 1 == end and length == end - first

    def _damaged(self, found: str) -> StoreError:
        return StoreError(
            f"read {self._url}",
            expected="the object's bytes",
            found=found,
            remedy="Check the server and what stands between: it changes what it stores or sends.",
        )


def as_file(body: Body) -> BinaryIO:
    """An ordinary buffered file that is read forward."""
    return io.BufferedReader(body, _BUFFER)


def whole(body: Body) -> bytes:
    """All bytes of a body."""
    with body:
        return b"".join(iter(lambda: body.read(_BUFFER), b""))
