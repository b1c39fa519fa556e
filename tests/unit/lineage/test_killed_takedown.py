"""Takedowns that are killed anywhere, run again: nothing is left, and nothing is unexplained."""

from itertools import count

import pytest

from compalign_dagster import decisions, latest
from compalign_dagster.lineage import chain, places, purge, redaction, takedown
from compalign_dagster.lineage.redaction import redactions, unfounded
from compalign_dagster.selection import blocks
from compalign_dagster.selection.blocks import entry
from compalign_dagster.selection.in_force import adopt
from compalign_dagster.selection.policy import Policy
from tests.support.shard_builder import samples, tar
from tests.support.small_version import HOSTS, SmallStore, small_store
from tests.unit.lineage.scanning import traces
from tests.unit.lineage.test_takedown import WHY, needles_of, purged, the_pair

pytestmark = [pytest.mark.slow]


def killing(patch: pytest.MonkeyPatch, small: SmallStore, share: float) -> None:
    """Die when this share of the planned writes is made."""
    made = count()

    def dying(write):
        def instead(*arguments, **named):
            planned = len(decisions.current(small.store, redaction.DECISION).value["changes"])
            if next(made) >= int(share * planned):
                raise KeyboardInterrupt
            return write(*arguments, **named)

        return instead

    for owner, name in ((type(small.store), "replace"), (type(small.store), "delete"), (purge, "_replace_landed")):
        patch.setattr(owner, name, dying(getattr(owner, name)))


def entries_of(kind: str, row: dict) -> list[blocks.Entry]:
    value = {"url_host": HOSTS[2], "image_near": row["image_phash"]}.get(kind) or row[kind]
    return [entry(kind, value, request="t")]


def left_over(small: SmallStore, entries: list[blocks.Entry], share: float, patch: pytest.MonkeyPatch) -> bool:
    """Whether a purge that died after this share of its writes, and ran again, has left a trace."""
    gone = takedown.doomed(small.store, entries).select("shard", "key").unique()
    needles = needles_of(small, [the_pair(small, *place) for place in gone.iter_rows()])
    with patch.context() as dying:
        killing(dying, small, share)
        with pytest.raises(KeyboardInterrupt):
            purged(small, entries)
    takedown.destroy(small.store, small.landing, entries, WHY)
    return bool(traces(small.home, needles))


@pytest.mark.parametrize("kind", ["url", "url_host", "pair_id", "image_sha256", "image_near"])
@pytest.mark.parametrize("share", [0.4, 0.99])
def test_a_purge_of_any_kind_that_was_killed_anywhere_goes_on(small, monkeypatch, kind, share):
    artifact = latest.require(small.store, "filtered_dataset")
    entries = entries_of(kind, the_pair(small))
    assert not left_over(small, entries, share, monkeypatch)
    assert chain.check(artifact, small.store, redactions(small.store)).faults == []
    assert list(unfounded(small.store)) == []
    assert takedown.destroy(small.store, small.landing, entries, WHY)[0].changes == ()


def test_the_planted_bug_of_writing_indexes_first_leaves_traces(small, monkeypatch):
    monkeypatch.setattr(purge, "_INDEXES", "no such folder/")
    monkeypatch.setattr(takedown, "purged", lambda store: set())
    found = left_over(small, entries_of("url_host", the_pair(small)), 0.6, monkeypatch)
    assert found


def test_a_shard_that_was_delivered_twice_loses_only_the_samples_of_the_delivery_that_was_asked_for(tmp_path):
    small = small_store(tmp_path / "home", batches=1, shards=1, pairs=6)
    shard = "web/00000.tar"
    path = small.home / "landing" / shard
    first = the_pair(small, shard, "again")
    others = [(f"again{name[5:]}" if name.startswith("00501") else name, data) for name, data in samples(9, 500)]
    path.write_bytes(tar(others))
    small.settle()
    before = path.read_bytes()
    one, other = places.deliveries(small.store)
    assert (one.shard, other.shard) == (shard, shard)
    untouched = small.store.read(other.pairs_key)
    done, _ = purged(small, [entry("pair_id", first["pair_id"], request="t")])
    assert path.read_bytes() == before
    assert small.store.read(other.pairs_key) == untouched
    assert one.pairs_key in {change.key for change in done.changes}
    assert not [text for text in done.remaining if shard in text]


def test_a_withdrawal_that_died_behind_its_record_goes_on(small, monkeypatch):
    takedown.request(small.store, [entry("url_host", HOSTS[0], request="t")], WHY)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "withdraw", _killed)
        with pytest.raises(KeyboardInterrupt):
            takedown.withdraw(small.store, "t", WHY)
    assert blocks.entries(blocks.in_force(small.store)).num_rows == 1
    takedown.withdraw(small.store, "t", WHY)
    assert blocks.entries(blocks.in_force(small.store)).num_rows == 0
    assert [fact.value["action"] for fact in takedown.history(small.store)] == ["request", "withdraw"]


def _killed(*_, **__):
    raise KeyboardInterrupt


def test_what_was_purged_stays_blocked_when_its_request_is_withdrawn(small):
    row = the_pair(small)
    purged(small, [entry("url", row["url"], request="t")])
    takedown.withdraw(small.store, "t", WHY)
    left = blocks.entries(blocks.in_force(small.store)).to_pylist()
    assert {(one["kind"], one["value"]) for one in left} == {("image_sha256", row["image_sha256"])}
    assert takedown.on_record(small.store) == takedown.purged(small.store)
    takedown.enforce(small.store)
    assert blocks.entries(blocks.in_force(small.store)).to_pylist() == left


def test_a_takedown_on_record_that_never_reached_the_block_list_is_enforced_before_a_version_is_decided(small):
    from assets.filtered_dataset import publish_dataset

    dead = {"kind": "url_host", "value": HOSTS[1], "distance": 0, "reason": "takedown", "request": "dead"}
    decisions.decide(
        small.store, redaction.TAKEDOWNS, {"action": "request", "entries": [dead], "by": "x", "why": "y"}, after=0
    )
    policy = adopt(small.store, Policy(keep_fraction="0.7"))
    version, _ = publish_dataset(small.storage, small.settings, policy, small.ledger)
    assert blocks.entries(blocks.in_force(small.store)).to_pylist() == [dead]
    assert version.facts["dropped_by_reason"]["takedown"] > 0


def test_nothing_on_record_makes_no_block_list(small):
    takedown.enforce(small.store)
    assert blocks.in_force(small.store) is None
