import json
import re
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.lineage import impact, places, takedown
from compalign_dagster.lineage.audit_db import build
from compalign_dagster.lineage.impact import sql_of
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from compalign_dagster.store import LocalStore
from tests.support.shard_builder import picture, tar
from tests.support.small_version import HOSTS
from tests.unit.lineage.test_takedown import the_pair

PAGE = Path("docs/auditing.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
WHY = Reason("an auditor", "because")


@pytest.fixture(scope="module")
def database(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "audit.duckdb"
    counts = build(made.store, out, versions.resolve(made.store, "current"))
    with duckdb.connect(out, read_only=True) as connection:
        yield connection, counts


@pytest.mark.parametrize("at", range(len(QUERIES)))
def test_every_documented_query_answers(database, at):
    connection, _ = database
    answer = connection.sql(QUERIES[at])
    assert answer.columns
    if "redactions" not in QUERIES[at] and "block_list" not in QUERIES[at]:
        assert answer.fetchall()


def test_the_database_says_what_the_version_says(database, made):
    connection, counts = database
    version = versions.resolve(made.store, "current")
    expected = pl.concat([version.decided(batch, ["pair_id", "shard", "key"]) for batch in version.batches()])
    found = connection.sql("select row, pair_id, shard, key, reason from decided").pl()
    order = ["shard", "key", "row"]
    assert found.select(expected.columns).sort(order).equals(expected.sort(order), null_equal=True)
    assert counts["kept"] == version.facts["kept"]
    assert counts["kept"] + counts["dropped"] == counts["decided"]
    assert dict(connection.sql("select version, kept from versions").fetchall()) == {
        item.name: item.artifact.facts["kept"] for item in versions.history(made.store)
    }
    assert connection.sql("select bool_and(live) from shards").fetchall() == [(True,)]
    assert set(connection.sql("select labeler from judges").fetchall()) == {("ada",), ("grace",)}


def test_the_sql_of_a_batch_gives_its_pairs_also_where_a_shard_left_and_came_back(small, tmp_path):
    """Its index then is of two batches, and `pairs` names the later one."""
    first = small.batches[0]
    shard = next(item.shard for item in places.deliveries(small.store, batch=first))
    path = small.home / "landing" / shard
    aside = shutil.copy2(path, tmp_path / "aside.tar")
    small.remove(shard)
    shutil.copy2(aside, path)
    again = small.settle().key
    assert {item.shard: item.batch for item in places.deliveries(small.store)}[shard] == again
    build(small.store, tmp_path / "audit.duckdb")
    with duckdb.connect(tmp_path / "audit.duckdb", read_only=True) as connection:
        for batch in (first, again, small.batches[1]):
            told = impact.of_batch(small.store, batch)
            assert len(connection.sql(told["sql"]).fetchall()) == told["pairs"] > 0, told["sql"]
        by_batch_alone = f"select distinct pair_id from pairs where batch = '{first}'"
        assert len(connection.sql(by_batch_alone).fetchall()) < impact.of_batch(small.store, first)["pairs"]


@pytest.mark.parametrize("kind", ["pair_id", "image_sha256", "url", "url_host", "image_near"])
def test_the_sql_of_an_impact_gives_the_same_pairs(database, made, kind):
    row = the_pair(made)
    value = {"url_host": HOSTS[1], "image_near": row["image_phash"]}.get(kind) or row[kind]
    one = entry(kind, value, request="r")
    told = impact.of_entries(made.store, [one])
    found = sorted(pair for (pair,) in database[0].sql(sql_of(one)).fetchall())
    assert len(found) == told["pairs"] > 0
    assert found[: impact.FIRST] == told["first_ids"]


ODD = [
    "https://PICTURES.Example.org:8443/a.jpg",
    "https://a@b@pictures.example.org/a.jpg",
    "https://pictures.example.org./a.jpg",
    "https:\\\\pictures.example.org\\a.jpg",
    "https://pictures。example。org/a.jpg",
    "https://pictures%2eexample.org/a.jpg",
    "https://deep.below.pictures.example.org/a.jpg",
    "https://notpictures.example.org/a.jpg",
    "https://bücher.example.org/a.jpg",
    "https://[2001:DB8::1]/a.jpg",
    "https://my_host.example.org/a.jpg",
    "https://myxhost.example.org/a.jpg",
    "not a URL",
]


def test_the_sql_of_a_host_names_what_the_block_list_names_however_a_url_is_written(small, tmp_path):
    members = [
        member
        for at, url in enumerate(ODD)
        for member in [
            (f"{at:03d}.jpg", picture(900 + at)),
            (f"{at:03d}.json", json.dumps({"captions": [f"odd {at}"], "url": url}).encode()),
        ]
    ]
    (small.home / "landing" / "web" / "00099.tar").write_bytes(tar(members))
    small.index()
    build(small.store, tmp_path / "audit.duckdb")
    counts = {}
    with duckdb.connect(tmp_path / "audit.duckdb", read_only=True) as connection:
        for host in ("pictures.example.org", "my_host.example.org", "bücher.example.org", "2001:db8::1", "example.org"):
            one = entry("url_host", host, request="r")
            found = {pair for (pair,) in connection.sql(sql_of(one)).fetchall()}
            reached = places.reached(small.store, [one], places.deliveries(small.store))
            assert found == set(reached["pair_id"]), host
            counts[host] = reached.filter(shard="web/00099.tar").height
    assert counts == {
        "pictures.example.org": 7, "my_host.example.org": 1, "bücher.example.org": 1, "2001:db8::1": 1,
        "example.org": 11,
    }  # fmt: skip


def test_a_long_request_is_answered_without_sql(made):
    entries = [entry("image_sha256", f"{at:064x}", request="r") for at in range(101)]
    assert "sql" not in impact.of_entries(made.store, entries)
    assert impact.of_entries(made.store, entries[:100])["sql"].count(" union ") == 99


def test_the_sql_of_a_batch_and_of_a_labeler_answer(database, made):
    connection, _ = database
    for told in (impact.of_batch(made.store, "batch-00001"), impact.of_labeler(made.store, "ada")):
        assert connection.sql(told["sql"]).fetchall()
    told = impact.of_batch(made.store, "batch-00001")
    assert len(connection.sql(told["sql"]).fetchall()) == told["pairs"]


def test_a_store_without_a_version_or_a_batch_has_a_database_too(tmp_path):
    counts = build(LocalStore(tmp_path / "store"), tmp_path / "deep" / "audit.duckdb")
    assert counts["pairs"] == counts["versions"] == 0


def test_a_database_that_exists_is_not_replaced(tmp_path):
    out = tmp_path / "audit.duckdb"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="new file"):
        build(LocalStore(tmp_path / "store"), out)
    assert out.read_bytes() == b"mine"


def test_views_of_a_local_store_show_a_purge_at_once(small, tmp_path):
    out = tmp_path / "audit.duckdb"
    build(small.store, out, versions.resolve(small.store, "current"))
    row = the_pair(small)
    entries = [entry("url", row["url"], request="t")]
    takedown.request(small.store, entries, WHY)
    takedown.destroy(small.store, small.landing, entries, WHY)
    with duckdb.connect(out, read_only=True) as connection:
        assert connection.execute("select * from pairs where url = ?", [row["url"]]).fetchall() == []
        found = connection.execute("select caption from pairs where pair_id = ?", [row["pair_id"]]).fetchall()
        assert found == [("",)]
    assert row["url"].encode() not in out.read_bytes()
