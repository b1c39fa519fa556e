"""What the block list names in a batch is worked out once: a re-filter reads the index of new batches alone."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import takedown
from compalign_dagster.lineage.verify import verify_version
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocked, blocks, deciding, prune
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import canonical_json, digest_bytes
from tests.support.small_version import HOSTS, SmallStore, small_store

_POLICY = Policy(keep_fraction="0.3")
_WHY = Reason("ada", "they asked")
_LATER = datetime.now(UTC) + timedelta(days=2)


class Told(LocalStore):
    """A store that tells which indexes were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.indexes: list[str] = []

    def read(self, key: str) -> bytes:
        if key.startswith("raw_crawl_shards/") and key.endswith("pairs.parquet"):
            self.indexes.append(key)
        return super().read(key)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SmallStore:
    """Two batches, and a host on the block list under which a version was made."""
    small = small_store(tmp_path_factory.mktemp("made") / "home", shards=1, pairs=12)
    _block(small, "url_host", HOSTS[1])
    small.filter(_POLICY)
    return small


@pytest.fixture
def small(made, tmp_path) -> SmallStore:
    """A copy that a test may alter."""
    return SmallStore(Path(shutil.copytree(made.home, tmp_path / "home")), made.shards, made.pairs, made.seed)


def _block(small: SmallStore, kind: str, value: str) -> None:
    takedown.request(small.store, [blocks.entry(kind, value, request=f"of {value}")], _WHY)


def _rows(small: SmallStore) -> list[dict]:
    return parquet.read(small.ledger.fetch("ledger.parquet")).to_pylist()


def _indexes_read(small: SmallStore) -> tuple[Version, list[str]]:
    """A decision under the block list in force, and the batches whose index was read for it, sorted."""
    told, rows = Told(small.store.root), _rows(small)
    decided = deciding.decide(told, rows, _POLICY)
    batch_of = {row["pairs_key"]: row["batch"] for row in rows}
    return decided, sorted({batch_of[key] for key in told.indexes})


def _remembered(small: SmallStore) -> list[artifacts.Artifact]:
    keys = [item.key for item in small.store.list(f"{blocked.KIND}/") if item.key.endswith("/manifest.json")]
    return [artifacts.load(small.store, key) for key in keys]


def test_a_new_batch_under_the_same_block_list_costs_the_index_of_that_batch(small):
    assert _indexes_read(small)[1] == []
    new = small.land_more().key
    decided, read = _indexes_read(small)
    assert read == [new]
    assert decided.facts["dropped_by_reason"]["takedown"] > 0
    assert _indexes_read(small)[1] == []


def test_the_planted_bug_of_matches_that_are_not_found_again_reads_the_whole_crawl(small):
    new = small.land_more().key
    with patch.object(blocked.artifacts, "find", _found_unless(blocked.KIND)):
        assert _indexes_read(small)[1] == sorted([*small.batches[:-1], new])


def _found_unless(kind: str) -> Callable:
    sound = artifacts.find
    return lambda store, wanted, key, partition=None: None if wanted == kind else sound(store, wanted, key, partition)


def test_what_is_remembered_is_what_the_indexes_give(small):
    listed = blocks.in_force(small.store)
    rows = _rows(small)
    assert len(_remembered(small)) == len(small.batches)
    for batch in small.batches:
        mine = [row for row in rows if row["batch"] == batch]
        found = blocked.of_batch(small.store, batch, mine, listed, blocks.entries(listed))
        there = blocks.matches([small.store.fetch(row["pairs_key"]) for row in mine], blocks.entries(listed))
        assert found is not None and found.height > 0
        assert found.equals(there)


def test_another_block_list_is_matched_anew_and_a_batch_that_it_says_nothing_new_of_keeps_its_list(small):
    first, second = small.batches
    before = deciding.decide(small.store, _rows(small), _POLICY)
    _block(small, "pair_id", before.kept(first)["pair_id"][0])
    after, read = _indexes_read(small)
    assert read == [first, second]
    assert after.facts["lists"] == {"made": 1, "reused": 1}
    assert after.ranked_list(second).manifest_key == before.ranked_list(second).manifest_key
    assert after.facts["dropped_by_reason"]["takedown"] == before.facts["dropped_by_reason"]["takedown"] + 1


def test_an_index_of_other_bytes_is_matched_anew(small):
    rows = _rows(small)
    listed = blocks.in_force(small.store)
    told = Told(small.store.root)
    changed = [{**row, "index_version": "0" * 64} for row in rows if row["batch"] == small.batches[0]]
    blocked.of_batch(told, small.batches[0], changed, listed, blocks.entries(listed))
    assert told.indexes == [row["pairs_key"] for row in changed]


def test_without_a_block_list_or_an_entry_nothing_is_read_or_remembered(made):
    told = Told(made.store.root / "none")
    assert blocked.of_batch(told, "b", [{"pairs_key": "-"}], None, blocks.BLOCKS.empty_table()) is None
    empty = blocks.in_force(made.store)
    assert blocked.of_batch(told, "b", [{"pairs_key": "-"}], empty, blocks.BLOCKS.empty_table()) is None
    assert told.indexes == []


def _forge(small: SmallStore, *, agreeing: bool) -> None:
    """What is remembered, without its first match; `agreeing`: the manifests say so too."""
    for item in _remembered(small):
        path = small.store.path(item.file_key("blocked.parquet"))
        pl.read_parquet(path).slice(1).write_parquet(path)
        if agreeing:
            manifest = item.manifest
            manifest["files"]["blocked.parquet"]["sha256"] = digest_bytes(path.read_bytes())
            small.store.path(item.manifest_key).write_bytes(canonical_json(manifest))


def test_what_is_remembered_wrongly_is_refused_or_where_all_of_it_agrees_found_by_verify(small):
    """The lists made by it are other ones than indexes and block list give."""
    _forge(small, agreeing=False)
    with pytest.raises(CompalignError, match="blocked.parquet"):
        small.filter(keep_fraction="0.4", move=False)
    _forge(small, agreeing=True)
    forged = small.filter(keep_fraction="0.4", move=False).artifact
    faults = list(map(str, verify_version(small.store, forged.manifest_key).faults))
    assert any("blocked pairs give" in fault for fault in faults), faults


def test_a_purge_leaves_what_is_remembered_and_versions_made_after_it_hold(small):
    entry = blocks.entry("url_host", HOSTS[1], request=f"of {HOSTS[1]}")
    done, _ = takedown.destroy(small.store, small.landing, [entry], _WHY)
    assert done.changes
    assert not [text for text in (*done.remaining, *(change.key for change in done.changes)) if blocked.KIND in text]
    version = small.filter(keep_fraction="0.25")
    assert version.facts["dropped_by_reason"]["takedown"] > 0
    assert verify_version(small.store, version.artifact.manifest_key).faults == []


def test_a_prune_takes_what_is_remembered_of_block_lists_that_were_followed(small):
    older = {item.manifest_key for item in _remembered(small)}
    assert not older & {item.manifest_key for item in prune.plan(small.store, 9, now=_LATER).lists}
    _block(small, "image_sha256", "a" * 64)
    version = small.filter(_POLICY)
    chosen = prune.plan(small.store, 9, now=_LATER)
    assert {item.manifest_key for item in chosen.lists} == older
    prune.prune(small.store, chosen, _WHY)
    assert len(_remembered(small)) == len(small.batches)
    assert not older & {item.manifest_key for item in _remembered(small)}
    assert verify_version(small.store, version.artifact.manifest_key).faults == []
