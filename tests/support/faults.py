"""Every damaged shard that the fault matrix shows: the hostile tars, compressed ones, and those of other tools.

A fault is a builder, the name its shard lies under, and what its docstring says went in. `note` says what
another tool made of the same input, with the release that was measured.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from compalign_dagster.crawl.index import Budgets
from tests.support import shard_builder as build

TAR, GZ = "cc3m/00000.tar", "cc3m/00000.tar.gz"


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    builder: Callable[[], bytes]
    name: str = TAR
    note: str = ""
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def said(self) -> str:
        """What went in, in one sentence."""
        return " ".join((self.builder.__doc__ or "").split())


def gz_good() -> bytes:
    """A sound gzip of a tar."""
    return gzip.compress(build.good_shard(3), mtime=0)


def gz_members() -> bytes:
    """A gzip file of three gzip members, and zeros after it."""
    data = build.good_shard(3)
    parts = (data[:1000], data[1000:1001], data[1001:])
    return b"".join(gzip.compress(part, mtime=0) for part in parts) + bytes(700)


def stored_gzip(data: bytes, block: int = 4096) -> bytes:
    """A gzip of blocks that are not compressed: the same bytes whatever wrote it."""
    parts = [b"\x1f\x8b\x08" + bytes(6) + b"\xff"]
    for at in range(0, len(data), block):
        piece = data[at : at + block]
        parts += [bytes([at + block >= len(data)]), struct.pack("<HH", len(piece), len(piece) ^ 0xFFFF), piece]
    return b"".join([*parts, struct.pack("<II", zlib.crc32(data), len(data))])


def gz_cut() -> bytes:
    """A gzip of a tar, cut in half."""
    data = stored_gzip(build.good_shard(10))
    return data[: len(data) // 2]


def gz_cut_before_its_sum() -> bytes:
    """A gzip of a tar without its last 6 bytes: everything is there but the check sum."""
    return gz_good()[:-6]


def gz_damaged() -> bytes:
    """A gzip of a tar in which the head of a block of the gzip stream is overwritten."""
    data = bytearray(stored_gzip(build.good_shard(10)))
    at = 10 + 4 * (5 + 4096)
    data[at : at + 5] = b"\xff" * 5
    return bytes(data)


def gz_wrong_sum() -> bytes:
    """A gzip of a tar whose check sum is not the one of its bytes."""
    data = bytearray(gz_good())
    data[-8] ^= 0xFF
    return bytes(data)


def gz_trailing() -> bytes:
    """A gzip of a tar, and then bytes that are no gzip."""
    return gz_good() + b"not gzip at all"


def gz_is_plain() -> bytes:
    """A plain tar called .tar.gz."""
    return build.good_shard(2)


def gz_empty() -> bytes:
    """No bytes at all, called .tar.gz."""
    return b""


def gz_of_a_damaged_tar() -> bytes:
    """A sound gzip of a tar with one header overwritten."""
    return gzip.compress(build.damaged_header(), mtime=0)


def gz_of_a_lying_size() -> bytes:
    """A sound gzip of a tar in which one header claims 8 EiB."""
    return gzip.compress(build.lying_size(), mtime=0)


def gz_of_a_cut_tar() -> bytes:
    """A sound gzip of a tar that was cut."""
    return gzip.compress(build.truncated_tar(), mtime=0)


def gz_bomb(unpacked: int = 1 << 26) -> bytes:
    """A gzip whose one member unpacks a thousandfold, past the budget (here 16 MiB)."""
    head = build.tar([*build.samples(1)]).rstrip(b"\0")
    head += bytes(-len(head) % 512) + build.tarfile_info("bad.jpg", 1 << 40).tobuf(tarfile.GNU_FORMAT)
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(head)]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(unpacked >> 20)]
    return b"".join([*parts, packer.flush()])


def many_members(count: int = 3000) -> bytes:
    """3,000 empty members where the budget is 1,000 (here)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for at in range(count):
            archive.addfile(build.tarfile_info(f"{at:06d}.cls"))
    return out.getvalue()


def big_member() -> bytes:
    """An image member of 2 MiB where the budget is 1 MiB (here)."""
    return build.with_entry(("bad.jpg", bytes(2 << 20)), ("bad.txt", b"a caption"))


def one_corrupt_of_128() -> bytes:
    """128 samples, the image of one of them corrupt."""
    entries = build.samples(128)
    entries[3 * 64] = (entries[3 * 64][0], b"\0" * 400)
    return build.tar(entries)


def one_header_of_750() -> bytes:
    """250 samples of 3 members, the header of member 150 of 750 overwritten."""
    return build.damaged_header(250, member=150)


def half_of_250() -> bytes:
    """250 samples, the tar cut in half."""
    data = build.good_shard(250)
    return data[: len(data) // 2]


_SKIPPED = "Data-Juicer 1.6.1, default `skip_op_error`, batched operator: 0 of 128 rows out, one line in the log"
_FILLED = "Data-Juicer 1.6.1 loader: accepted; 66 % of the pixel rows were flat filler"
NOTES = {
    "cut_image": _FILLED,
    "interleaved": "webdataset 1.0.2: 4 broken half-samples out of two interleaved keys, no error",
    "pickle_member": "webdataset 1.0.2, default `.decode()` of a `.pkl` member: its payload was executed",
}
MINE = {
    builder.__name__: Fault(builder, GZ)
    for builder in (
        gz_good, gz_members, gz_cut, gz_cut_before_its_sum, gz_damaged, gz_wrong_sum, gz_trailing, gz_is_plain,
        gz_empty, gz_of_a_damaged_tar, gz_of_a_lying_size, gz_of_a_cut_tar,
    )
}  # fmt: skip
FAULTS: dict[str, Fault] = {
    **{name: Fault(builder, note=NOTES.get(name, "")) for name, builder in build.HOSTILE.items()},
    **MINE,
    "gz_bomb": Fault(gz_bomb, GZ, budgets=Budgets(unpacked_bytes=16 << 20)),
    "many_members": Fault(many_members, budgets=Budgets(members=1000)),
    "big_member": Fault(big_member, budgets=Budgets(member_bytes=1 << 20)),
    "one_corrupt_of_128": Fault(one_corrupt_of_128, note=_SKIPPED),
    "one_header_of_750": Fault(
        one_header_of_750, note="webdataset 1.0.2, `warn_and_continue`: 50 of 250 samples, no exception"
    ),
    "half_of_250": Fault(half_of_250, note="webdataset 1.0.2, `warn_and_continue`: 125 samples, no exception"),
}
