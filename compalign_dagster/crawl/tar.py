"""Tar, read in one pass by a reader that neither stops silently nor trusts a size.

Python's `tarfile` ends without a word at a damaged header in the middle. `walk` reports the damage
with its offset and goes on at the next good header. Nothing is ever written under a member's name.
What does not belong here: which members matter (`samples.py`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from compalign_dagster.crawl.reasons import Reason

BLOCK = 512
_CHUNK = 1 << 17  # what is read at once; larger buffers cost page faults
_EXTENSION_BYTES = 1 << 20  # long names and pax records larger than this are not believed
_MAGIC, _MAGIC_AT = b"ustar", 257
_OCTAL = re.compile(rb"[0-7]*")
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_EXTENSIONS = (b"L", b"K", b"x", b"X", b"g")  # headers that speak about the next one, or all
_LINKS_AND_DEVICES = (b"1", b"2", b"3", b"4", b"6")


class Source(Protocol):
    """Where bytes come from; fewer than asked for do not mean the end, none do."""

    def read(self, length: int, /) -> bytes: ...


class Tape:
    """A stream read forwards once, through a small window: knows its offset, can look ahead."""

    def __init__(self, stream: Source) -> None:
        self._stream = stream
        self._window, self._at = b"", 0
        self._ended = False
        self.offset = 0

    def has(self, length: int) -> int:
        """How many of the next bytes there are, up to `length`: they are in memory then."""
        missing = length - (len(self._window) - self._at)
        if missing > 0 and not self._ended:
            pieces = [self._window[self._at :]]
            while missing > 0 and not self._ended:
                pieces.append(piece := self._stream.read(max(_CHUNK, missing)))
                missing -= len(piece)
                self._ended = not piece
            self._window, self._at = b"".join(pieces), 0
        return min(length, len(self._window) - self._at)

    def peek(self, length: int) -> bytes:
        """The next bytes without passing them; fewer only at the end of the stream."""
        self.has(length)
        return self._window[self._at : self._at + length]

    def skip(self, length: int) -> int:
        """Pass bytes in pieces of bounded size; returns how many there were."""
        if self._at + length <= len(self._window):
            self._at += length
            self.offset += length
            return length
        left = length
        while left:
            if self._at == len(self._window):
                self._window, self._at = self._stream.read(_CHUNK), 0
                if not self._window:
                    break
            step = min(left, len(self._window) - self._at)
            self._at += step
            left -= step
        self.offset += length - left
        return length - left

    def read(self, length: int) -> bytes:
        """Pass bytes and return them; fewer only at the end of the stream."""
        data = self.peek(length)
        self.skip(len(data))
        return data


class Member(NamedTuple):
    """A member whose header is sound and whose bytes are all there.

    `offset` is where its data starts in the plain tar, unpacked if the shard is compressed. `read` works
    until the next member is asked for.
    """

    name: bytes
    kind: Literal["file", "folder", "other"]
    offset: int
    size: int
    tape: Tape

    def read(self) -> bytes:
        """The member's bytes, all of them in memory: look at `size` first."""
        assert self.tape.offset == self.offset, "a member is read once, before the next one"
        return self.tape.read(self.size)


@dataclass(frozen=True)
class Damage:
    """Something wrong with the archive itself at `offset`; `unit` says what it cost."""

    reason: Reason
    unit: Literal["shard", "member"]
    offset: int
    detail: str
    name: bytes | None = None


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes
    has_map: bool  # of an old GNU sparse file: blocks that `size` leaves out follow


@dataclass
class _Told:
    """What extension headers say about the next member; nothing else of them is kept, however many there are."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


class LengthNeededError(Exception):
    """A member that was not looked at ahead ends beyond the archive, which has `total` bytes: walk again."""

    def __init__(self, total: int) -> None:
        super().__init__(f"the archive has {total} bytes")
        self.total = total


def walk(tape: Tape, total: int | None, ahead: int = 0) -> Iterator[Member | Damage]:
    """Every member and every damage of an archive of `total` bytes, in order of offset.

    With `total` None (a compressed shard before it was unpacked) members of up to `ahead` bytes are looked
    at whole before they are given out, so that none is cut; `LengthNeededError` says when that was not enough.
    """
    told: _Told | None = None
    resumed = False  # whether the last thing met was damage
    while True:
        start = tape.offset
        zeros = _skip_zeros(tape)
        block = tape.peek(BLOCK)
        if told and (zeros or not block):
            yield _lost(start, told, "zeros" if zeros >= BLOCK else "the end of the file")
            told, resumed = None, True
        if not block:
            if zeros < BLOCK and not resumed and start:
                yield Damage(Reason.END_MISSING, "shard", start, "expected tar's end marker, found the end of the file")
            return
        header = _parse(block)
        if header is None:
            yield _skip_damage(tape, start)
            told, resumed = None, True
            continue
        if zeros and not resumed:
            yield Damage(Reason.ZERO_GAP, "shard", start, f"expected the end, found members after {zeros} zero bytes")
        tape.skip(BLOCK)
        _skip_sparse_map(tape, header)
        size = _size(header, told)
        there = _there(tape, size, total, ahead)
        if there < size:
            yield _cut(tape, start, header, size, there)
            told, resumed = None, True
            continue
        end = tape.offset + size
        if header.kind in _EXTENSIONS:
            told = _noted(tape, header, size, told)
        else:
            name = header.name if told is None or told.name is None else told.name
            if resumed and told is None and (len(header.name) >= 99 or b"?" in header.name):
                detail = "expected its long name before it, found damage there"
                yield Damage(Reason.HEADER_DAMAGED, "member", start, detail, name)
            else:
                yield Member(name, _kind(header, told), tape.offset, size, tape)
            told, resumed = None, False
        tape.skip(end - tape.offset + -size % BLOCK)
        if total is None and tape.offset < end:
            raise LengthNeededError(tape.offset)


def _there(tape: Tape, size: int, total: int | None, ahead: int) -> int:
    """How many of the next `size` bytes the archive has, as far as that can be known without passing them."""
    if total is not None:
        return min(size, total - tape.offset)
    return tape.has(size) if size <= ahead else size


def _lost(start: int, told: _Told, found: str) -> Damage:
    """An extension header without the member that it is about."""
    reason = Reason.HEADER_DAMAGED if found == "zeros" else Reason.MEMBER_TRUNCATED
    return Damage(reason, "member", start, f"expected the member that a header announced, found {found}", told.name)


def _skip_sparse_map(tape: Tape, header: _Header) -> None:
    """Pass the blocks in which an old GNU sparse file goes on to list its pieces."""
    more = header.has_map
    while more and (block := tape.peek(BLOCK)):
        more = block[504:505] > b"\0"
        tape.skip(len(block))


def _size(header: _Header, told: _Told | None) -> int:
    """How many bytes follow; links, devices and folders have none whatever their header says."""
    if header.kind in _EXTENSIONS:
        return header.size
    if header.kind in _LINKS_AND_DEVICES or _is_folder(header):
        return 0
    return header.size if told is None or told.size is None else told.size


def _is_folder(header: _Header) -> bool:
    return header.kind == b"5" or (header.kind == b"\0" and header.name.endswith(b"/"))


def _kind(header: _Header, told: _Told | None) -> Literal["file", "folder", "other"]:
    if _is_folder(header):
        return "folder"
    sparse = told is not None and told.sparse
    return "file" if header.kind in (b"0", b"\0", b"7") and not sparse else "other"


def _noted(tape: Tape, header: _Header, size: int, told: _Told | None) -> _Told | None:
    """What is known of the next member after a long-name or pax header, whose bytes are passed."""
    if header.kind == b"g":
        return told
    told = told or _Told()
    if size > _EXTENSION_BYTES:
        told.name = b""  # no name: refused later
        tape.skip(size)
        return told
    data = tape.read(size)
    if header.kind == b"L":
        told.name = data.split(b"\0", 1)[0]
    elif header.kind in (b"x", b"X"):
        for key, value in _pax_records(data):
            if key == b"path":
                told.name = value
            elif key == b"size" and value.isdigit() and len(value) < 20:
                told.size = int(value)
            told.sparse |= key.startswith(b"GNU.sparse")
    return told


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while record := _PAX_RECORD.match(data, at):
        end = at + int(record[1])
        if end <= record.end():
            break
        yield record[2], data[record.end() : end - 1]
        at = end


def _skip_zeros(tape: Tape) -> int:
    """Pass whole blocks of zeros, and a shorter rest of zeros at the end; returns how many bytes."""
    if tape.peek(1) != b"\0":
        return 0
    passed = 0
    while window := tape.peek(BLOCK if not passed else _CHUNK):
        zeros = len(window) - len(window.lstrip(b"\0"))
        if zeros < len(window):
            zeros -= zeros % BLOCK
        passed += tape.skip(zeros)
        if zeros < len(window):
            break
    return passed


def _skip_damage(tape: Tape, start: int) -> Damage:
    """Go to the next good header, from a block that is none."""
    head = tape.peek(BLOCK)
    begun = tape.offset
    tape.skip(1)
    found = _resume(tape)
    skipped = f"{tape.offset - start} bytes skipped"
    if not found and start == 0 and begun == 0:
        hint = "; a gzip is read under a name that ends in .tar.gz or .tgz" if head.startswith(b"\x1f\x8b") else ""
        return Damage(Reason.NOT_A_TAR, "shard", 0, f"expected a tar header, found {head[:8]!r}; none later{hint}")
    if len(head) < BLOCK:
        detail = f"expected a header of {BLOCK} bytes, found {len(head)}"
        return Damage(Reason.MEMBER_TRUNCATED, "member", start, detail)
    return Damage(Reason.HEADER_DAMAGED, "member", start, f"expected a tar header, found {head[:8]!r}; {skipped}")


def _cut(tape: Tape, start: int, header: _Header, size: int, there: int) -> Damage:
    """A member that ends beyond the file: the file was cut, or the size is wrong and members follow."""
    detail = f"expected {size} bytes, found {there}"
    if _resume(tape):
        detail += f"; the next good header is at {tape.offset}"
    return Damage(Reason.MEMBER_TRUNCATED, "member", start, detail, header.name)


def _resume(tape: Tape) -> bool:
    """Pass bytes up to the next block, at any alignment, that is a sound header with tar's magic."""
    while True:
        window = tape.peek(_CHUNK)
        at = window.find(_MAGIC, _MAGIC_AT)
        while at >= 0:
            first = at - _MAGIC_AT
            plausible = not window[first + 148 : first + 156].strip(b"01234567 \0")
            if plausible and _parse(window[first : first + BLOCK]) is not None:
                tape.skip(first)
                return True
            at = window.find(_MAGIC, at + 1)
        if len(window) < _CHUNK:
            tape.skip(len(window))
            return False
        tape.skip(_CHUNK - BLOCK + 1)  # a header that reaches over the edge is seen whole next time


def _parse(block: bytes) -> _Header | None:
    """A header, or None where its checksum or a number does not hold."""
    if len(block) < BLOCK:
        return None
    told, size = _number(block[148:156]), _number(block[124:136])
    if told is None or size is None:
        return None
    spaced = sum(block) - sum(block[148:156]) + 8 * ord(" ")  # the sum is made with spaces in its own place
    if told != spaced and told != spaced - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):  # signed
        return None
    name, prefix = _text(block[:100]), _text(block[345:500])
    if prefix and block[_MAGIC_AT : _MAGIC_AT + 6] == b"ustar\0":
        name = prefix + b"/" + name
    kind = block[156:157]
    return _Header(name, size, kind, kind == b"S" and block[482:483] > b"\0")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int | None:
    """An octal or base-256 number that is not negative, or None."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if _OCTAL.fullmatch(digits) else None
