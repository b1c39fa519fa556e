"""Compressed shards: unpacked in bounded memory, as far as they go, and read forwards by later stages."""

import gzip
import hashlib
import io
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.crawl.shards import MemberReader, Shard, read_member
from compalign_dagster.crawl.streams import Hashed, Inflated
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore, ObjectChangedError
from tests.support import faults
from tests.support import shard_builder as build

_PLENTY = 1 << 30


def unpack(data: bytes, budget: int = _PLENTY, step: int = 1 << 20) -> tuple[bytes, Inflated]:
    stream = Inflated(io.BytesIO(data), budget)
    pieces = []
    while piece := stream.read(step):
        pieces.append(piece)
    return b"".join(pieces), stream


def problem(data: bytes, budget: int = _PLENTY) -> tuple[str, int]:
    stream = unpack(data, budget)[1]
    assert stream.problem is not None
    return stream.problem.reason, stream.problem.offset


@pytest.mark.parametrize("step", [1, 700, 1 << 20])
def test_gzip_members_follow_each_other_and_padding_is_no_problem(step):
    plain, stream = unpack(faults.gz_members(), step=step)
    assert plain == build.good_shard(3)
    assert stream.problem is None


def test_what_is_wrong_with_a_gzip_stream_is_named_with_its_offset_in_the_plain_bytes():
    whole = len(build.good_shard(3))
    assert problem(faults.gz_cut_before_its_sum()) == ("gzip_truncated", whole)
    assert problem(faults.gz_wrong_sum()) == ("gzip_damaged", whole)
    assert problem(faults.gz_trailing()) == ("gzip_trailing", whole)
    assert problem(faults.gz_is_plain()) == ("gzip_damaged", 0)
    assert problem(b"") == ("gzip_truncated", 0)
    assert problem(b"\x1f") == ("gzip_damaged", 0)
    assert problem(gzip.compress(bytes(100)), budget=99) == ("shard_too_large", 99)


def test_the_budget_of_unpacked_bytes_is_inclusive():
    plain, stream = unpack(gzip.compress(bytes(100)), budget=100)
    assert (len(plain), stream.problem) == (100, None)


@pytest.mark.parametrize("at", [40, 400, 1500])
def test_everything_before_a_damaged_place_is_given_out_however_much_is_asked_for(at):
    plain = random.Random(1).randbytes(4000)
    data = bytearray(gzip.compress(plain, mtime=0))
    data[at] ^= 0xFF
    found = [unpack(bytes(data), step=step)[0] for step in (1, 100, 1 << 20)]
    assert found[0] == found[1] == found[2]
    stored = bytearray(gzip.compress(build.good_shard(10), mtime=0))
    stored[2000:2016] = b"\xff" * 16
    outs = {unpack(bytes(stored), step=step)[0] for step in (1, 512, 1 << 20)}
    assert len(outs) == 1
    assert build.good_shard(10).startswith(outs.pop()[:5000])


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=400), st.binary(max_size=200).map(lambda b: gzip.compress(b) + b[:20])))
def test_any_bytes_as_a_gzip_stream_never_raise(data):
    plain, stream = unpack(data)
    assert stream.offset == len(plain)
    assert stream.problem is not None or len(plain) <= len(data) * 1100


def test_a_compressed_shard_has_the_same_pairs_as_its_plain_tar(tmp_path):
    data = build.captions_with_nulls()
    plain = index_shard(build.place(tmp_path, data, "a/0.tar"))
    for name in ("b/0.tar.gz", "b/1.tgz"):
        packed = index_shard(build.place(tmp_path, gzip.compress(data), name))
        columns = [column for column in plain.pairs.column_names if column not in ("shard", "corpus")]
        assert packed.pairs.select(columns) == plain.pairs.select(columns)
        assert packed.quarantine.drop_columns(["shard"]) == plain.quarantine.drop_columns(["shard"])


def test_the_digest_of_a_compressed_shard_is_that_of_its_own_bytes(tmp_path):
    for builder in (faults.gz_members, faults.gz_trailing, faults.gz_damaged, faults.gz_bomb):
        summary = index_shard(build.place(tmp_path, builder(), faults.GZ), Budgets(unpacked_bytes=1 << 20)).summary
        assert summary["sha256"] == hashlib.sha256(builder()).hexdigest()
        assert summary["bytes"] == len(builder())


def test_a_lying_size_inside_a_compressed_shard_does_not_hide_the_rest(tmp_path):
    index = index_shard(build.place(tmp_path, faults.gz_of_a_lying_size(), faults.GZ))
    assert {"00002", "00003"} <= set(index.pairs["key"].to_pylist())
    lying = bytearray(gzip.decompress(faults.gz_of_a_lying_size()))
    small = index_shard(build.place(tmp_path, gzip.compress(bytes(lying)), faults.GZ), Budgets(member_bytes=1 << 62))
    assert {"00002", "00003"} <= set(small.pairs["key"].to_pylist())


def test_a_bomb_costs_one_row_and_what_came_before_it_is_indexed(tmp_path):
    index = index_shard(build.place(tmp_path, faults.gz_bomb(), faults.GZ), Budgets(unpacked_bytes=1 << 24))
    [row] = index.quarantine.to_pylist()
    assert (row["unit"], row["reason"], row["member"]) == ("member", "shard_too_large", "bad.jpg")
    assert index.pairs["key"].to_pylist() == ["00000"]
    assert index.summary["status"] == "partial"


def places(shard: Shard) -> list[tuple[int, int, str]]:
    rows = index_shard(shard).pairs.to_pylist()
    return [(row["image_offset"], row["image_length"], row["image_sha256"]) for row in rows]


_EDITS = st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(max_size=30), st.integers(0, 400)), max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inside=_EDITS, outside=_EDITS, stored=st.booleans())
def test_any_damage_to_a_compressed_shard_never_raises_and_leaves_true_places(inside, outside, stored, tmp_path):
    def damaged(data: bytes, edits) -> bytes:
        for at, new, removed in edits:
            at %= len(data) + 1
            data = data[:at] + new + data[at + removed :]
        return data

    plain = damaged(build.good_shard(3), inside)
    packed = damaged(faults.stored_gzip(plain) if stored else gzip.compress(plain), outside)
    shard = build.place(tmp_path, packed, faults.GZ)
    for budgets in (Budgets(), Budgets(member_bytes=700)):  # members beyond it are not looked at ahead
        index = index_shard(shard, budgets)
        units = Counter(index.quarantine["unit"].to_pylist())
        facts = index.summary
        assert facts["members"] == facts["used"] + units["member"] + facts["ignored"]
        assert facts["captions"] == index.pairs.num_rows + units["caption"]
        for row in index.pairs.to_pylist():
            image = read_member(shard, row["image_offset"], row["image_length"])
            assert hashlib.sha256(image).hexdigest() == row["image_sha256"]


class CountingStore(LocalStore):
    """A folder that counts how often a shard is opened."""

    opened = 0

    def open(self, key, *, stamp=None):
        self.opened += 1
        return super().open(key, stamp=stamp)


def test_members_of_a_compressed_shard_are_read_in_one_pass_forwards(tmp_path):
    build.place(tmp_path, gzip.compress(build.good_shard(20)), faults.GZ)
    store = CountingStore(tmp_path)
    shard = Shard(faults.GZ, store, faults.GZ)
    wanted = places(shard)
    store.opened = 0
    with MemberReader() as members:
        for offset, length, digest in wanted:
            for _ in range(2):  # the same place again is no step back
                assert hashlib.sha256(members.read(shard, offset, length)).hexdigest() == digest
        assert (members.restarts, store.opened) == (0, 1)


def test_a_step_back_is_right_too_and_counted(tmp_path):
    shard = build.place(tmp_path, gzip.compress(build.good_shard(5)), faults.GZ)
    with MemberReader() as members:
        for offset, length, digest in reversed(places(shard)):
            assert hashlib.sha256(members.read(shard, offset, length)).hexdigest() == digest
        assert members.restarts == 4
    offset, length, digest = places(shard)[2]
    assert hashlib.sha256(read_member(shard, offset, length)).hexdigest() == digest


def test_members_of_a_damaged_compressed_shard_are_read_back_too(tmp_path):
    for builder in (faults.gz_damaged, faults.gz_cut, faults.gz_bomb):
        shard = build.place(tmp_path, builder(), faults.GZ)
        assert places(shard)
        for offset, length, digest in places(shard):
            assert hashlib.sha256(read_member(shard, offset, length)).hexdigest() == digest


def test_a_place_that_is_not_there_is_an_error(tmp_path):
    shard = build.place(tmp_path, faults.gz_good(), faults.GZ)
    with pytest.raises(InputError, match="changed after it was indexed"):
        read_member(shard, 1 << 30, 5)


@pytest.mark.parametrize("name", [faults.TAR, faults.GZ])
def test_a_shard_that_was_written_over_is_not_read_under_the_old_stamp(name, tmp_path):
    good = build.good_shard(3)
    shard = build.place(tmp_path, gzip.compress(good) if name == faults.GZ else good, name)
    stamped = Shard(name, shard.store, name, shard.store.stat(name).stamp)
    [(offset, length, _), *_rest] = places(stamped)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[::-1])
    for read in (lambda: read_member(stamped, offset, length), lambda: index_shard(stamped)):
        with pytest.raises(ObjectChangedError):
            read()


def test_a_hashed_stream_digests_all_bytes_however_they_are_read():
    data = random.Random(2).randbytes(5000)
    stream = Hashed(io.BytesIO(data))
    stream.read(7)
    assert stream.finish() == hashlib.sha256(data).hexdigest()
    assert stream.count == 5000
