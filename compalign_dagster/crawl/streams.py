"""Streams under a tar: one that digests what passes, one that unpacks gzip within a budget.

What belongs here: bytes of a shard on their way to the tape. What does not: tar (`tar.py`).
"""

import hashlib
import zlib
from typing import BinaryIO

from compalign_dagster.crawl.reasons import Reason
from compalign_dagster.crawl.tar import Damage, Source

_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 15  # gzip unpacks at most a thousandfold: this bounds what one step can give
_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS


class Hashed:
    """A stream that counts and digests all that passes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, length: int, /) -> bytes:
        data = self._stream.read(length)
        self._digest.update(data)
        self.count += len(data)
        return data

    def finish(self) -> str:
        """Pass the rest; the SHA-256 of the whole stream, hex."""
        while self.read(_CHUNK):
            pass
        return self._digest.hexdigest()


class Inflated:
    """The plain bytes of a gzip stream of any number of gzip members, in bounded memory.

    It ends where the gzip stream ends or cannot be read on; then `problem` says why, with the offset in
    the plain bytes. What came before a damaged place is given out whole. Padding of zeros after the
    last gzip member is no problem.
    """

    def __init__(self, source: Source, budget: int) -> None:
        self._source, self._budget = source, budget
        self._engine: zlib._Decompress | None = None
        self._packed = b""
        self._passed = 0  # packed bytes read from the source
        self._members = 0
        self._ended = False
        self.offset = 0
        self.problem: Damage | None = None

    def read(self, length: int, /) -> bytes:
        """About `length` bytes, empty only at the end."""
        while not self._ended:
            piece = self._unpack(length) if self._engine is not None else self._next_member()
            if self.offset + len(piece) > self._budget:
                piece = piece[: self._budget - self.offset]
                self._stop(Reason.SHARD_TOO_LARGE, f"expected at most {self._budget} unpacked bytes, found more", piece)
            if piece:
                self.offset += len(piece)
                return piece
        return b""

    def _fill(self) -> bytes:
        if not self._packed:
            self._packed = self._source.read(_PACKED_CHUNK)
            self._passed += len(self._packed)
        return self._packed

    def _next_member(self) -> bytes:
        """Begin the next gzip member, or end; gives no bytes."""
        while self._fill():
            if self._members and not (rest := self._packed.lstrip(b"\0")):
                self._packed = b""  # padding
                continue
            rest = self._packed.lstrip(b"\0") if self._members else self._packed
            if len(rest) < len(_MAGIC):
                more = self._source.read(_PACKED_CHUNK)
                self._passed += len(more)
                rest += more
            self._packed = rest
            at = self._passed - len(rest)
            if rest.startswith(_MAGIC):
                self._engine = zlib.decompressobj(_GZIP)
                self._members += 1
            elif self._members:
                self._stop(Reason.GZIP_TRAILING, f"expected the end, found {rest[:8]!r} at byte {at} of the gzip file")
            else:
                self._stop(Reason.GZIP_DAMAGED, f"expected a gzip header, found {rest[:8]!r} at byte {at}")
            return b""
        if not self._members:
            self._stop(Reason.GZIP_TRUNCATED, "expected a gzip header, found an empty file")
        self._ended = True
        return b""

    def _unpack(self, length: int) -> bytes:
        assert self._engine is not None, "a gzip member was begun"
        packed = self._fill()
        before = self._engine.copy()
        try:
            piece = self._engine.decompress(packed, max(1, min(length, self._budget - self.offset + 1)))
        except zlib.error as error:
            piece, read = _before_the_error(before, packed)
            at = self._passed - len(packed) + read
            self._stop(
                Reason.GZIP_DAMAGED, f"expected gzip, found damage at byte {at} of the gzip file: {error}", piece
            )
            return piece
        self._packed = self._engine.unconsumed_tail
        if self._engine.eof:
            self._packed = self._engine.unused_data
            self._engine = None
        elif not packed and not piece:
            found = f"the end of the file at byte {self._passed}"
            self._stop(Reason.GZIP_TRUNCATED, f"expected the rest of the gzip stream, found {found}")
        return piece

    def _stop(self, reason: Reason, detail: str, last: bytes = b"") -> None:
        self._ended = True
        self.problem = Damage(reason, "shard", self.offset + len(last), detail)


def _before_the_error(engine: "zlib._Decompress", packed: bytes) -> tuple[bytes, int]:
    """What packed bytes give up to the one at which they are damaged, and which one that is.

    Byte by byte, so that the same file gives the same plain bytes however much was asked for at once.
    """
    plain = bytearray()
    for at in range(len(packed)):
        try:
            plain += engine.decompress(packed[at : at + 1])
        except zlib.error:
            return bytes(plain), at
    return bytes(plain), len(packed)
