"""A version has the same bytes wherever and whenever its shards landed; its ledger tells where they lie."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage.trace import Sought, trace
from compalign_dagster.lineage.verify import verify_version
from compalign_dagster.selection import blocks, deciding, version
from compalign_dagster.selection.pairs import kept_frames
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.tables import SHARD_KEYS, SHARDS_USED
from compalign_dagster.selection.version import Version
from compalign_dagster.versions import canonical_json, digest_bytes
from tests.support.small_version import SmallStore, small_store

_POLICY = Policy(keep_fraction="0.4", per_corpus={"shop": "0.25"}, reward_floor=-1.5, most_per_domain=5)


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> list[SmallStore]:
    """The same crawl in two stores, landed one after the other, with a pair on the block list."""
    made = [small_store(tmp_path_factory.mktemp(name), pairs=8) for name in ("one", "two")]
    blocked = Version.open(made[0].filter(_POLICY, move=False).artifact).kept(made[0].batches[0])["pair_id"][0]
    for small in made:
        blocks.add(small.store, [blocks.entry("pair_id", blocked, request="r-1")])
    return made


@pytest.fixture
def small(twice, tmp_path) -> SmallStore:
    """A copy of the first that a test may alter."""
    home = shutil.copytree(twice[0].home, tmp_path / "home")
    return SmallStore(Path(home), twice[0].shards, twice[0].pairs, twice[0].seed)


def _data_versions(twice: list[SmallStore]) -> list[str]:
    return [small.filter(_POLICY, move=False).artifact.data_version for small in twice]


def test_shards_that_landed_at_another_time_give_the_same_version(twice):
    keys = [set(small.filter(_POLICY, move=False).shard_keys["pairs_key"]) for small in twice]
    assert not keys[0] & keys[1], "the stamps of the landing differ"
    one, two = _data_versions(twice)
    assert one == two


def test_the_planted_bug_of_a_store_key_in_the_version_turns_this_red(twice):
    keyed = SHARDS_USED.append(SHARD_KEYS.field("pairs_key"))
    with ExitStack() as planted:
        planted.enter_context(patch.object(deciding, "CODE_VERSION", -1))  # so that the versions are made again
        planted.enter_context(patch.object(deciding, "SHARDS_USED", keyed))
        planted.enter_context(patch.dict(deciding.TABLES, shards=keyed))
        one, two = _data_versions(twice)
    assert one != two


def test_keys_come_from_the_ledger_before_and_after_a_version_is_published(twice):
    made = twice[0]
    published = Version.open(made.filter(keep_fraction="0.3", move=False).artifact)
    rows = parquet.read(made.ledger.fetch("ledger.parquet")).to_pylist()
    decided = deciding.decide(made.store, rows, published.policy)
    assert decided.shard_keys.equals(published.shard_keys)
    assert published.shard_keys.columns == SHARD_KEYS.names
    told = {row["shard"]: row for row in rows}
    for row in published.shard_keys.iter_rows(named=True):
        assert {name: told[row["shard"]][name] for name in row} == row


def _forge(small: SmallStore, change: pl.Expr) -> None:
    """The ledger changed, with a manifest that agrees."""
    ledger = small.ledger
    table = pl.read_parquet(ledger.fetch("ledger.parquet")).with_columns(change)
    path = small.home / "forged.parquet"
    table.write_parquet(path)
    manifest = ledger.manifest
    manifest["files"]["ledger.parquet"]["sha256"] = digest_bytes(path.read_bytes())
    for key, data in ((ledger.file_key("ledger.parquet"), path.read_bytes()),
                      (ledger.manifest_key, canonical_json(manifest))):  # fmt: skip
        small.store.path(key).write_bytes(data)


@pytest.mark.parametrize("change", ["swapped keys", "another index"])
def test_a_ledger_with_other_shards_under_the_same_name_is_refused(small, change):
    made = small.filter(keep_fraction="0.3", move=False).artifact
    swapped = {"swapped keys": pl.col("pairs_key").reverse(), "another index": pl.lit("0" * 64).alias("index_version")}
    _forge(small, swapped[change])
    with pytest.raises(CompalignError, match="another ledger under that name"):
        _ = Version.open(made).shard_keys
    assert verify_version(small.store, made.manifest_key).faults


def test_a_ledger_that_is_gone_or_has_other_bytes_is_refused(small):
    made = small.filter(keep_fraction="0.3", move=False).artifact
    path = small.store.path(small.ledger.file_key("ledger.parquet"))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CompalignError, match="ledger.parquet"):
        _ = Version.open(made).shard_keys
    small.store.path(small.ledger.manifest_key).unlink()
    with pytest.raises(CompalignError, match="found none"):
        _ = Version.open(made).shard_keys


def test_rows_that_are_not_of_the_version_are_refused(twice):
    made = twice[0]
    rows = parquet.read(made.ledger.fetch("ledger.parquet")).to_pylist()
    decided = deciding.decide(made.store, rows, Policy(keep_fraction="0.3"))
    other = [{**row, "data_version": "0" * 64} for row in rows]
    with pytest.raises(CompalignError, match=f"none of {sorted(row['shard'] for row in rows)[0]}"):
        _ = Version(**{**vars(decided), "rows": other}).shard_keys


def test_a_version_that_holds_keys_itself_as_earlier_releases_wrote_it_is_read(small):
    with (
        patch.object(deciding, "CODE_VERSION", 3),
        patch.object(deciding, "SHARDS_USED", SHARD_KEYS),
        patch.dict(version.TABLES, shards=SHARD_KEYS),
    ):
        earlier = small.filter(keep_fraction="0.35", move=False).artifact
    assert "pairs_key" in pl.read_parquet(earlier.fetch("shards.parquet")).columns
    found = Version.open(artifacts.load(small.store, earlier.manifest_key))
    assert found.shards.columns == SHARDS_USED.names
    kept = pl.concat(kept_frames(found))
    assert kept.height == found.facts["kept"]
    assert not verify_version(small.store, earlier.manifest_key).faults
    told = trace(small.store, Sought(pair_id=kept["pair_id"][0]))
    assert earlier.manifest_key in {entry["manifest"] for one in told["pairs"] for entry in one["versions"]}
