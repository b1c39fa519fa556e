"""The tar reader itself: what tells of the next member, what is kept of it, and how far hostile archives get."""

import io
import tarfile
import tracemalloc

import pytest

from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.crawl.tar import BLOCK, Damage, Member, Tape, walk
from tests.support import shard_builder as build

LONG = "p" * 150


def items(data: bytes, *, total_known: bool = True) -> list[tuple]:
    """Members as (name, bytes), damages as (reason, offset)."""
    found = walk(Tape(io.BytesIO(data)), len(data) if total_known else None, ahead=1 << 20)
    return [
        (item.reason.value, item.offset) if isinstance(item, Damage) else (item.name.decode(), item.read())
        for item in found
    ]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    return build.tarfile_info(name, size, kind).tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def summed(block: bytearray) -> bytes:
    """A header with its check sum made right again."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("map_blocks", [0, 1, 3])
def test_the_map_of_an_old_gnu_sparse_file_is_no_damage_and_hides_no_member(map_blocks):
    sparse = bytearray(header("holes.bin", 700, b"S"))
    sparse[482] = map_blocks > 0
    maps = b"".join(bytes(504) + bytes([at < map_blocks - 1]) + bytes(7) for at in range(map_blocks))
    data = summed(sparse) + maps + padded(b"d" * 700) + build.tar([("a.txt", b"after")])
    assert items(data) == [("holes.bin", b"d" * 700), ("a.txt", b"after")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_behind_a_hole_never_gets_the_name_of_the_one_lost_in_it(form):
    first = build.tar([(f"{LONG}.txt", b"lost"), ("b.txt", b"found")], form=form)
    at = build.header_offsets(first)[1]
    own = at - 2 * BLOCK  # the header after its extension, and its one block of data
    holed = first[:own] + bytes(2 * BLOCK) + first[at:]
    assert items(holed) == [("header_damaged", own), ("b.txt", b"found")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("rest", "reason"), [(b"", "member_truncated"), (bytes(20 * BLOCK), "header_damaged")])
def test_an_announced_member_that_never_comes_is_reported(form, rest, reason):
    whole = build.tar([("a.txt", b"first"), (f"{LONG}.txt", b"lost")], form=form)
    own = len(whole.rstrip(b"\0")) // BLOCK * BLOCK - BLOCK
    assert items(whole[:own] + rest) == [("a.txt", b"first"), (reason, own)]


def test_what_pax_headers_say_of_other_things_is_not_kept():
    def record(at: int) -> bytes:
        body = b" key%09d=" % at + b"v" * (1 << 18) + b"\n"
        return b"%d" % (len(body) + 6) + body

    data = b"".join(header("x", len(record(at)), b"x") + padded(record(at)) for at in range(64))
    data += build.tar([("a.txt", b"after")])
    tracemalloc.start()
    try:
        assert items(data) == [("a.txt", b"after")]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_many_lying_sizes_do_not_each_read_to_the_end_again():
    class Counted(io.BytesIO):
        asked = 0

        def read(self, length=-1, /):
            self.asked += 1
            return super().read(length)

    stream = Counted(header("q.bin", 1 << 19) * 500)
    found = list(walk(Tape(stream), None, ahead=1 << 20))
    assert [type(item) for item in found] == [Damage] * 500
    assert stream.asked < 10


def test_damaged_stretches_count_in_the_budget_of_members_too(tmp_path):
    shard = build.place(tmp_path, header("q.bin", 1 << 40) * 100)
    index = index_shard(shard, Budgets(members=10))
    reasons = index.quarantine["reason"].to_pylist()
    assert sorted(reasons) == ["member_truncated"] * 10 + ["members_too_many"]


def test_gaps_without_members_between_them_are_bounded_too(tmp_path):
    shard = build.place(tmp_path, (header("g", 0, b"g") + bytes(BLOCK)) * 100)
    assert index_shard(shard, Budgets(members=10)).quarantine.num_rows < 25


def test_an_archive_inside_a_member_is_only_its_bytes():
    inner = build.good_shard(2)
    data = build.tar([("a.jpg", inner), ("b.txt", b"after")])
    for known in (True, False):
        assert items(data, total_known=known) == [("a.jpg", inner), ("b.txt", b"after")]


def test_members_are_where_tarfile_finds_them_in_every_format():
    entries = [(f"{'d/' * at}{'n' * (at * 13)}é{at}.txt", bytes([at]) * (at * 97)) for at in range(24)]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        fitting = [entry for entry in entries if form != tarfile.USTAR_FORMAT or len(entry[0].encode()) <= 100]
        data = build.tar(fitting, form=form)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            told = [(member.name.encode(), member.offset_data, member.size) for member in archive]
        found = [item for item in walk(Tape(io.BytesIO(data)), len(data)) if isinstance(item, Member)]
        assert [(item.name, item.offset, item.size) for item in found] == told
