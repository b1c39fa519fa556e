"""The batch log: what a landing folder becomes, and what must never happen to it."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster import decisions
from compalign_dagster.crawl.batches import NAME, Batch, ShardStamp, live_shards, read_log, require, seal
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore

_LATER = 10_000_000_000.0  # long after any file was written


class Place:
    """A landing folder and a store side by side."""

    def __init__(self, folder):
        self.folder = folder / "landing"
        self.folder.mkdir(parents=True)
        self.landing, self.store = LocalStore(self.folder), LocalStore(folder / "store")

    def land(self, name: str, data: bytes = b"x", mtime: float = 1_000_000.0) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (mtime, mtime))

    def seal(self, *, most: int = 100, settled: float = 30.0, now: float = _LATER) -> list[Batch]:
        return seal(self.store, self.landing, max_shards=most, settled_seconds=settled, now=now)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def added(batch: Batch) -> list[str]:
    return [item.shard for item in batch.added]


def test_what_lies_there_is_sealed_once(place):
    place.land("cc3m/1.tar")
    place.land("cc3m/0.tar")
    [batch] = place.seal()
    assert batch.key == "batch-00001"
    assert added(batch) == ["cc3m/0.tar", "cc3m/1.tar"]
    assert place.seal() == []
    assert read_log(place.store) == [batch]


def test_a_batch_holds_at_most_so_many_shards(place):
    for at in range(5):
        place.land(f"{at}.tar")
    batches = place.seal(most=2)
    assert [len(batch.added) for batch in batches] == [2, 2, 1]
    assert [batch.key for batch in batches] == ["batch-00001", "batch-00002", "batch-00003"]
    assert place.seal(most=2) == []


def test_a_shard_delivered_again_supersedes_and_a_vanished_one_is_removed(place):
    for name in ("a.tar", "b.tar", "c.tar"):
        place.land(name)
    place.seal()
    place.land("a.tar", b"longer")
    (place.folder / "b.tar").unlink()
    place.land("d.tar")
    [batch] = place.seal()
    assert added(batch) == ["d.tar"]
    assert [(item.shard, item.size) for item in batch.superseded] == [("a.tar", 6)]
    assert batch.removed == ("b.tar",)
    live = live_shards(read_log(place.store))
    assert {name: key for name, (key, _) in live.items()} == {
        "a.tar": "batch-00002", "c.tar": "batch-00001", "d.tar": "batch-00002",
    }  # fmt: skip
    assert live["a.tar"][1].size == 6


def test_removals_alone_make_a_batch(place):
    place.land("a.tar")
    place.land("b.tar")
    place.seal()
    (place.folder / "b.tar").unlink()
    [batch] = place.seal()
    assert (batch.added, batch.superseded, batch.removed) == ((), (), ("b.tar",))


def test_a_shard_that_comes_back_is_added_again(place):
    place.land("a.tar")
    place.land("b.tar")
    place.seal()
    (place.folder / "b.tar").unlink()
    place.seal()
    place.land("b.tar")
    [batch] = place.seal()
    assert added(batch) == ["b.tar"]


def test_a_file_still_being_written_waits_and_does_not_count_as_removed(place):
    place.land("old.tar", mtime=1000)
    place.land("young.tar", mtime=1990)
    [batch] = place.seal(now=2000, settled=30)
    assert added(batch) == ["old.tar"]
    [batch] = place.seal(now=2020, settled=30)
    assert added(batch) == ["young.tar"]
    place.land("old.tar", b"being replaced", mtime=2999)
    assert place.seal(now=3000, settled=30) == []
    assert "old.tar" in live_shards(read_log(place.store))


def test_a_clock_that_runs_ahead_does_not_hold_a_shard_for_ever(place):
    place.land("future.tar", mtime=99_999)
    assert len(place.seal(now=1000)) == 1


def test_only_visible_tars_are_shards(place):
    for name in (".a.tar", ".staging/b.tar", "c.tar.part", "d.tmp", "e.parquet", "f.tar"):
        place.land(name)
    assert added(place.seal()[0]) == ["f.tar"]


def test_an_empty_landing_folder_is_nothing_at_first_and_an_error_once_shards_are_live(place):
    assert place.seal() == []
    place.land("a.tar")
    place.seal()
    (place.folder / "a.tar").unlink()
    with pytest.raises(InputError, match="no shard at all"):
        place.seal()
    place.folder.rmdir()
    with pytest.raises(InputError, match="mounted"):
        place.seal()
    assert set(live_shards(read_log(place.store))) == {"a.tar"}


def test_a_sealer_that_was_overtaken_compares_again_and_registers_nothing_twice(place, monkeypatch):
    place.land("a.tar")
    rival = Place.seal
    raced = []

    def slow(store, name, value, *, after):
        if not raced:
            raced.append(True)
            rival(place)
        return real(store, name, value, after=after)

    real = decisions.decide
    monkeypatch.setattr(decisions, "decide", slow)
    assert place.seal() == []
    assert len(read_log(place.store)) == 1


def test_a_batch_is_found_by_its_key_and_an_unknown_one_is_an_error(place):
    place.land("a.tar")
    [batch] = place.seal()
    assert require(place.store, "batch-00001") == batch
    with pytest.raises(InputError, match="batch-00009"):
        require(place.store, "batch-00009")


def test_the_log_is_a_sequence_of_decisions(place):
    place.land("a.tar")
    place.seal()
    assert [decision.version for decision in decisions.history(place.store, NAME)] == [1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3), min_size=1), max_size=5),
    most=st.integers(1, 4),
)
def test_after_any_history_the_live_shards_are_what_lies_there(steps, most, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("batches"))
    for contents in steps:
        for path in place.folder.iterdir():
            path.unlink()
        for name, size in contents.items():
            place.land(f"{name}.tar", b"x" * size, mtime=1_000_000 + size)
        sealed = place.seal(most=most)
        assert all(len(batch.added) + len(batch.superseded) <= most for batch in sealed)
        live = live_shards(read_log(place.store))
        assert {name: stamp for name, (_, stamp) in live.items()} == {
            item.key: ShardStamp(item.key, item.size, item.stamp) for item in place.landing.list()
        }
        assert place.seal(most=most) == []
