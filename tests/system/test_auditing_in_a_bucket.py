"""A takedown and an audit database of a store that lies in a bucket."""

import duckdb
import pytest

from compalign_dagster.lineage import takedown
from compalign_dagster.lineage.audit_db import build
from compalign_dagster.lineage.redaction import redactions
from compalign_dagster.lineage.trace import Sought, trace
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from compalign_dagster.store.bucket import BucketStore
from tests.support.small_version import small_store
from tests.unit.lineage.test_takedown import needles_of, the_pair

pytestmark = [pytest.mark.system]


@pytest.fixture
def moved(s3, tmp_path):
    """A small store and its landing folder, copied into a bucket; the local ones stay."""
    small = small_store(tmp_path / "home", pairs=8)
    small.filter(keep_fraction="0.5")
    stores = {name: BucketStore(f"{s3.url}/{name}", s3.client) for name in ("store", "landing")}
    for name, local in (("store", small.store), ("landing", small.landing)):
        for item in local.list():
            stores[name].put_new(item.key, local.read(item.key))
    return small, stores["store"], stores["landing"]


def test_a_purge_in_a_bucket_empties_tables_deletes_pages_and_names_landed_shards(moved):
    small, store, landing = moved
    row = the_pair(small)
    needles = needles_of(small, [row])
    entries = [entry("url", row["url"], request="t")]
    takedown.request(store, entries, Reason("an auditor", "ticket"))
    before = {item.key: item.stamp for item in landing.list()}
    done, _ = takedown.destroy(store, landing, entries, Reason("an auditor", "ticket"))
    assert {item.key: item.stamp for item in landing.list()} == before
    assert any("in a bucket" in text and row["shard"] in text and row["key"] in text for text in done.remaining)
    assert {key for key in redactions(store)} == {change.key for change in done.changes}
    for item in store.list():
        data = store.read(item.key)
        assert not any(needle in data for needle in needles)
    (pair,) = trace(store, Sought(pair_id=row["pair_id"]))["pairs"]
    assert (pair["caption"], pair["url"], pair["redacted"]) == ("", None, ["t"])


def test_a_database_of_a_bucket_stands_alone(moved, tmp_path):
    small, store, _ = moved
    out = tmp_path / "audit.duckdb"
    counts = build(store, out, versions.resolve(store, "current"))
    with duckdb.connect(out, read_only=True) as connection:
        views = connection.execute("select sql from duckdb_views() where not internal").fetchall()
        assert not any("read_parquet" in sql for (sql,) in views)
        decided = connection.sql("select count(*), count(*) filter (reason is null) from decided").fetchall()
    assert decided == [(counts["decided"], versions.resolve(small.store, "current").facts["kept"])]
