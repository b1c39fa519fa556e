import pytest

from compalign_dagster.lineage import chain, landed, takedown
from compalign_dagster.lineage.redaction import Change, record, redactions, unfounded
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from compalign_dagster.store import LocalStore
from tests.support.small_version import small_store
from tests.unit.lineage.test_takedown import the_pair

A, B, C, X = (letter * 64 for letter in "abcd")
WHY = Reason("an auditor", "ticket 7")


def test_a_redaction_explains_its_change_and_nothing_else(tmp_path):
    store = LocalStore(tmp_path)
    record(store, [Change("k", A, B, 3)], request="t-1")
    (found,) = redactions(store).values()
    assert (found.key, found.requests) == ("k", ("t-1",))
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


def test_what_was_there_before_is_not_explained_even_though_it_is_what_the_manifest_says(tmp_path):
    store = LocalStore(tmp_path)
    record(store, [Change("k", A, B, 1)], request="t-1")
    record(store, [Change("k", B, C, 1)], request="t-2")
    found = redactions(store)["k"]
    assert not any(found.explains(A, back) for back in (A, B))
    assert found.explains(X, X)  # another delivery under the same name, of which nobody asked anything


def test_a_purge_that_was_killed_does_not_break_the_chain_of_the_next(tmp_path):
    store = LocalStore(tmp_path)
    killed, after = Change("k", A, B, 1), Change("k", A, C, 1)
    record(store, [killed], request="t-1")
    record(store, [after], request="t-2")
    assert redactions(store)["k"].explains(A, C)
    record(store, [Change("k", C, X, 1)], request="t-1")
    assert redactions(store)["k"].explains(A, X)
    assert not redactions(store)["k"].explains(A, B)


def test_a_killed_purge_that_goes_on_is_written_down_again_behind_another_that_was_killed(tmp_path):
    store = LocalStore(tmp_path)
    for request, now in (("t-1", B), ("t-2", C), ("t-1", B)):
        record(store, [Change("k", A, now, 1)], request=request)
    assert redactions(store)["k"].explains(A, B)


def test_a_record_that_no_purge_has_ordered_is_named(whole):
    purge(whole)
    assert list(unfounded(whole.store)) == []
    record(whole.store, [Change("k", A, B, 1)], request="nobody asked")
    number = len(list(whole.store.list("decisions/redactions/")))
    assert list(unfounded(whole.store)) == [(f"decisions/redactions/{number:08d}.json", "nobody asked")]


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


def looked_at(small, artifact):
    """Faults and redacted files of the store and of the landing folder."""
    known = redactions(small.store)
    found = chain.check(artifact, small.store, known)
    outside = landed.check(small.store, found, known, small.landing, None)
    return [*found.faults, *outside.faults], {*found.redacted, *outside.redacted}


def purge(small):
    entries = [entry("pair_id", the_pair(small)["pair_id"], request="t-9")]
    takedown.request(small.store, entries, WHY)
    return takedown.destroy(small.store, small.landing, entries, WHY)[0]


def test_a_chain_holds_after_a_purge_and_says_what_was_redacted(whole):
    artifact = versions.find(whole.store, "current")
    done = purge(whole)
    faults, redacted = looked_at(whole, artifact)
    assert faults == []
    behind = {change.key for change in done.changes if "raw_crawl_shards" in change.key or change.place == "landing"}
    assert len(behind) >= 2
    assert behind <= redacted


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
    assert looked_at(whole, artifact)[0]


def test_the_planted_bug_of_rewriting_without_a_record_is_a_fault(whole, monkeypatch):
    artifact = versions.find(whole.store, "current")
    monkeypatch.setattr("compalign_dagster.lineage.redaction.record", lambda *_, **__: None)
    purge(whole)
    assert looked_at(whole, artifact)[0]
