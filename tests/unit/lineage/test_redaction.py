import pytest

from compalign_dagster.lineage import chain, takedown
from compalign_dagster.lineage.redaction import Change, record, redactions
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_bytes
from tests.support.small_version import small_store
from tests.unit.lineage.test_takedown import the_pair

A, B, C, X = (letter * 64 for letter in "abcd")
WHY = Reason("an auditor", "ticket 7")


def test_a_redaction_explains_its_change_and_nothing_else(tmp_path):
    store = LocalStore(tmp_path)
    record(store, [Change("k", A, B, 3)], request="t-1")
    (found,) = redactions(store).values()
    assert (found.key, found.rows, found.requests) == ("k", 3, ("t-1",))
    assert found.explains(A, B)
    assert not any(found.explains(*pair) for pair in [(A, C), (C, B), (A, None), (B, A)])


def test_changes_of_one_file_are_a_chain_that_must_not_break(tmp_path):
    store = LocalStore(tmp_path)
    record(store, [Change("k", A, B, 1)], request="t-1")
    record(store, [Change("k", B, C, 2)], request="t-2")
    record(store, [Change("k", C, None, 0)], request="t-3")
    found = redactions(store)["k"]
    assert found.explains(A, None)
    assert not found.explains(A, C)
    record(store, [Change("other", A, B, 1)], request="t-4")
    record(store, [Change("other", X, C, 1)], request="t-5")
    assert not redactions(store)["other"].explains(A, C)


def test_a_change_is_written_down_once(tmp_path):
    store = LocalStore(tmp_path)
    for _ in range(2):
        record(store, [Change("k", A, B, 1), Change("l", A, B, 1)], request="t-1")
    record(store, [], request="t-2")
    assert [item.requests for item in redactions(store).values()] == [("t-1",), ("t-1",)]


@pytest.fixture
def whole(tmp_path):
    small = small_store(tmp_path / "home", pairs=8)
    small.filter(keep_fraction="0.5")
    return small


def outside(small):
    """The landed bytes as they are now."""

    def read(source):
        name = source.key.removeprefix(f"{small.landing.url}/")
        return digest_bytes(small.landing.read(name)) if name != source.key else source.data_version

    return read


def purge(small):
    entries = [entry("pair_id", the_pair(small)["pair_id"], request="t-9")]
    takedown.request(small.store, entries, WHY)
    return takedown.destroy(small.store, small.landing, entries, WHY)[0]


def test_a_chain_holds_after_a_purge_and_says_what_was_redacted(whole):
    artifact = versions.find(whole.store, "current")
    done = purge(whole)
    found = chain.check(artifact, whole.store, outside(whole), redactions(whole.store))
    assert found.faults == []
    behind = {change.key for change in done.changes if "raw_crawl_shards" in change.key or change.place == "landing"}
    assert len(behind) >= 2
    assert behind <= set(found.redacted)


@pytest.mark.parametrize("place", ["store", "landing"])
def test_one_more_changed_byte_in_a_redacted_file_is_a_fault(whole, place):
    artifact = versions.find(whole.store, "current")
    change = next(
        item for item in purge(whole).changes if item.place == place and (place == "landing" or "pairs" in item.key)
    )
    name = change.key.removeprefix(f"{whole.landing.url}/")
    path = whole.home / ("landing" if place == "landing" else "store") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert chain.check(artifact, whole.store, outside(whole), redactions(whole.store)).faults


def test_the_planted_bug_of_rewriting_without_a_record_is_a_fault(whole, monkeypatch):
    artifact = versions.find(whole.store, "current")
    monkeypatch.setattr("compalign_dagster.lineage.redaction.record", lambda *_, **__: None)
    purge(whole)
    assert chain.check(artifact, whole.store, outside(whole), redactions(whole.store)).faults
