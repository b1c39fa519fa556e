"""The batch log: what a landing folder becomes, and what must never happen to it."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster import decisions
from compalign_dagster.crawl import batches
from compalign_dagster.crawl.batches import NAME, Batch, ShardStamp, live_shards, read_log, require, seal
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore


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

    def seal(self, *, most: int = 100, pairs: int = 1_000_000, remove: tuple[str, ...] = ()) -> list[Batch]:
        return seal(self.store, self.landing, max_shards=most, max_pairs=pairs, remove_corpora=remove)


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


def test_only_visible_tars_are_shards(place):
    for name in (".a.tar", ".staging/b.tar", "c.tar.part", "d.tmp", "e.parquet", "f.tar", "g.tar.gz", "h.tgz", "i.gz"):
        place.land(name)
    assert added(place.seal()[0]) == ["f.tar", "g.tar.gz", "h.tgz"]


def test_a_batch_is_full_when_img2dataset_says_that_it_has_so_many_pairs(place):
    for name, count in (("a", 600), ("b", 300), ("c", 200), ("d", 2_000), ("e", 5)):
        place.land(f"{name}.tar")
        place.land(f"{name}_stats.json", f'{{"successes": {count}}}'.encode())
    assert [added(batch) for batch in place.seal(pairs=1000)] == [["a.tar", "b.tar"], ["c.tar"], ["d.tar"], ["e.tar"]]


def test_removals_count_as_shards_so_that_no_entry_grows_without_bound(place):
    for at in range(7):
        place.land(f"{at}.tar")
    place.seal()
    for at in range(6):
        (place.folder / f"{at}.tar").unlink()
    assert [len(batch.removed) for batch in place.seal(most=4)] == [4, 2]


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


@pytest.fixture
def half_lost(place):
    """Two corpora, of which one has lost its mount while the other got a shard more."""
    for name in ("cc3m/0.tar", "cc3m/1.tar", "laion/0.tar"):
        place.land(name)
    place.seal()
    for name in ("0", "1"):
        (place.folder / f"cc3m/{name}.tar").unlink()
    place.land("laion/1.tar")
    return place


def test_a_corpus_that_vanished_whole_is_refused_and_holds_back_only_itself(half_lost):
    with pytest.raises(InputError, match=r"cc3m, found no shard at all.*remove_corpora"):
        half_lost.seal()
    assert set(live_shards(read_log(half_lost.store))) == {"cc3m/0.tar", "cc3m/1.tar", "laion/0.tar", "laion/1.tar"}


def test_the_planted_bug_of_a_guard_for_the_whole_folder_only_would_remove_the_corpus(half_lost, monkeypatch):
    monkeypatch.setattr(batches, "corpus_of", lambda name: "all")
    half_lost.seal()
    assert set(live_shards(read_log(half_lost.store))) == {"laion/0.tar", "laion/1.tar"}


def test_a_corpus_is_removed_when_its_name_is_said_and_again_without_harm(half_lost):
    [batch] = half_lost.seal(remove=("cc3m",))
    assert batch.removed == ("cc3m/0.tar", "cc3m/1.tar")
    assert half_lost.seal(remove=("cc3m",)) == []
    with pytest.raises(InputError, match="laion"):
        half_lost.seal(remove=("laion",))


def test_a_misspelled_corpus_removes_nothing(half_lost):
    with pytest.raises(InputError, match="cc3m"):
        half_lost.seal(remove=("cc3",))
    assert "cc3m/0.tar" in live_shards(read_log(half_lost.store))


def test_a_shard_that_the_listing_missed_is_asked_for_before_it_is_removed(place, monkeypatch):
    for name in ("a.tar", "b.tar"):
        place.land(name)
    place.seal()
    whole = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", lambda *at, **to: (x for x in whole(*at, **to) if x.key != "b.tar"))
    assert place.seal() == []


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
        assert all(len(batch.added) + len(batch.superseded) + len(batch.removed) <= most for batch in sealed)
        live = live_shards(read_log(place.store))
        assert {name: stamp for name, (_, stamp) in live.items()} == {
            item.key: ShardStamp(item.key, item.size, item.stamp) for item in place.landing.list()
        }
        assert place.seal(most=most) == []
