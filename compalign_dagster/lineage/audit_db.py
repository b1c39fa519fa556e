"""The audit database: DuckDB views over the store's Parquet files, and small tables of what was decided.

What belongs here: which views there are and over which files. What does not: questions to ask of them
(docs/auditing.md), which tests run.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from compalign_dagster import decisions, latest, parquet
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.crawl.tables import PAIRS, QUARANTINE
from compalign_dagster.errors import InputError
from compalign_dagster.hosts import hosts_of
from compalign_dagster.lineage import models, places
from compalign_dagster.lineage.impact import quoted
from compalign_dagster.lineage.pointers import DECIDED
from compalign_dagster.scoring.tables import LEDGER, SCORES
from compalign_dagster.selection import blocks, versions
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.sql import create_views
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store

if TYPE_CHECKING:
    import duckdb

_TEXT = pa.string()


def build(store: Store, out: Path, version: Version | None = None) -> dict[str, int]:
    """Write a DuckDB database to `out` and return how many rows each of its tables and views has.

    Of a store on this disk the views read its own files, so they are always up to date with them and the database
    stays small; files of a bucket are fetched into tables. `version` is what `decided`, `kept` and `dropped` show.

    Raises:
        InputError: when `out` exists: a database that somebody looks at is not replaced.
    """
    import duckdb

    if out.exists():
        raise InputError(f"{out}", expected="a new file", found="one that exists", remedy="Name another, or delete it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        part = Path(folder, "audit.duckdb")
        with duckdb.connect(part) as database:
            database.execute("set enable_progress_bar = false")
            local = _is_local(store)
            _over_files(database, store, local)
            _tables(database, store)
            if version is not None:
                create_views(database, version)
                if not local:
                    _keep(database, ("ranked",))
            counts = _counts(database)
        part.replace(out)
    return counts


def _is_local(store: Store) -> bool:
    return "://" not in store.url


def _over_files(database: "duckdb.DuckDBPyConnection", store: Store, local: bool) -> None:
    """`pairs`, `quarantine` of every delivery, `scores` of every model; each row names its batch and file."""
    among = places.deliveries(store)
    _view(database, store, "pairs_files", PAIRS, [(item.pairs_key, item.batch) for item in among])
    _view(database, store, "quarantine", QUARANTINE, [(item.quarantine_key, item.batch) for item in among])
    rows = {
        (row["scores_key"], row["batch"])
        for batch in read_log(store)
        for artifact in latest.history(store, "scored_shards", batch.key)
        for row in parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    }
    _view(database, store, "scores", SCORES, sorted(rows))
    if not local:
        _keep(database, ("pairs_files", "quarantine", "scores"))
    _hosts(database, store, among)
    database.execute(
        "create view pairs as select f.*, h.host from pairs_files f left join hosts h on h.url_sha256 = sha256(f.url)"
    )


def _hosts(database: "duckdb.DuckDBPyConnection", store: Store, among: Iterable[places.Delivery]) -> None:
    """The host of every URL, as the block list compares it. Of a URL only the digest: no purge reaches this file."""
    database.execute("create table hosts (url_sha256 varchar, host varchar)")
    for item in among:
        urls = places.index_of(store, item, ["url"])["url"].cast(pl.String).unique().drop_nulls()
        database.register("incoming", pl.DataFrame({"url": urls, "host": hosts_of(urls)}).to_arrow())
        database.execute("insert into hosts select sha256(url), host from incoming where host is not null")
        database.unregister("incoming")
    database.execute("create table distinct_hosts as select distinct * from hosts")
    database.execute("drop table hosts; alter table distinct_hosts rename to hosts")


def _view(
    database: "duckdb.DuckDBPyConnection", store: Store, name: str, schema: pa.Schema, files: Sequence[tuple[str, str]]
) -> None:
    """A view over these files with their batch; without a file, an empty table of these columns."""
    if not files:
        _table(database, name, schema.empty_table().append_column("batch", pa.array([], _TEXT)))
        return
    placed = [{"file": str(store.fetch(key)), "batch": batch, "store_key": key} for key, batch in files]
    _table(database, f"{name}_of", pa.Table.from_pylist(placed))
    paths = ", ".join(quoted(entry["file"]) for entry in placed)
    database.execute(
        f"create view {name} as select f.* exclude (filename), o.batch, o.store_key "  # noqa: S608 - quoted
        f"from read_parquet([{paths}], filename = true, union_by_name = true) f join {name}_of o on o.file = f.filename"
    )


def _keep(database: "duckdb.DuckDBPyConnection", names: Iterable[str]) -> None:
    """Turn views over fetched files into tables: the files go with this process."""
    for name in names:
        kind = database.execute("select table_type from information_schema.tables where table_name = ?", [name])
        if (kind.fetchone() or ("",))[0] == "VIEW":
            database.execute(f"create table {name}_kept as select * from {name}")  # noqa: S608 - names of our own
            database.execute(f"drop view {name}; alter table {name}_kept rename to {name}")


def _tables(database: "duckdb.DuckDBPyConnection", store: Store) -> None:
    """What is small: shards, batches, models, labelers, decisions, versions, cuts, the ledger, the block list."""
    log = read_log(store)
    live = {shard: batch for shard, (batch, _) in live_shards(log).items()}
    shards = [
        {**vars(item), "index": item.index, "live": live.get(item.shard) == item.batch}
        for item in places.deliveries(store)
    ]
    facts = [(name, fact) for name in DECIDED for fact in decisions.history(store, name)]
    known = versions.history(store)
    trained = models.models(store)
    _rows(
        database,
        "shards",
        shards,
        "shard, batch, pairs_key, index_version, sha256, bytes::bigint, index, live::boolean",
    )
    _rows(
        database,
        "batches",
        [
            {
                "batch": item.key,
                "added": len(item.added),
                "superseded": len(item.superseded),
                "removed": len(item.removed),
            }
            for item in log
        ],
        "batch, added::bigint, superseded::bigint, removed::bigint",
    )
    _rows(
        database,
        "models",
        [
            {"model_version": item.facts["model_version"], "manifest": item.manifest_key,
             "created": item.manifest["created"], "backbone": item.manifest["config"].get("backbone")}
            for item in trained
        ],
        "model_version, manifest, created, backbone",
    )  # fmt: skip
    _rows(database, "judges", list(_judges(trained)), "model_version, annotations, labeler, images::bigint, guidelines")
    _rows(
        database,
        "decisions",
        [{"name": name, "number": fact.version, "decided": fact.decided, "by": fact.value.get("by"),
          "why": fact.value.get("why"), "value": _json(fact.value)} for name, fact in facts],
        '"name", number::bigint, decided, "by", why, value',
    )  # fmt: skip
    _rows(
        database,
        "versions",
        [
            {"version": item.name, "manifest": item.artifact.manifest_key, "created": item.artifact.manifest["created"],
             "was_current": bool(item.current), "policy": _json(item.artifact.facts.get("policy")),
             **{name: item.artifact.facts[name] for name in ("pairs", "kept", "dropped", "quarantined")}}
            for item in known
        ],
        "version, manifest, created, was_current::boolean, policy, pairs::bigint, kept::bigint, dropped::bigint, "
        "quarantined::bigint",
    )  # fmt: skip
    cuts = [version.cuts.with_columns(version=pl.lit(item.name)) for item, version in places.readable(store)]
    if cuts:
        _table(database, "all_cuts", pl.concat(cuts).to_arrow())
    _rows(database, "reasons", [{"reason": name, "meaning": text} for name, text in MEANING.items()], "reason, meaning")
    ledger = latest.latest(store, "score_ledger")
    _table(database, "ledger", parquet.read(ledger.fetch("ledger.parquet")) if ledger else LEDGER.empty_table())
    _table(database, "block_list", blocks.entries(blocks.in_force(store)))


def _judges(trained: Sequence[Any]) -> Iterable[dict[str, Any]]:
    for model in trained:
        for item in models.annotations_of(model):
            found = models.judges(item)
            for labeler, images in found["images_by_labeler"].items():
                yield {
                    "model_version": model.facts["model_version"],
                    "annotations": item.manifest_key,
                    "labeler": labeler,
                    "images": images,
                    "guidelines": ", ".join(found["guidelines"]),
                }


def _json(value: Any) -> str:
    """A JSON value as text; DuckDB's `->>` reads it."""
    return json.dumps(value, sort_keys=True)


def _rows(database: "duckdb.DuckDBPyConnection", name: str, rows: Sequence[Mapping[str, Any]], columns: str) -> None:
    """A table of these columns (`name::type`, text by default) from dictionaries, also from none."""
    wanted = [column.strip().partition("::") for column in columns.split(",")]
    types: dict[str, pa.DataType] = {"bigint": pa.int64(), "boolean": pa.bool_(), "": _TEXT}
    schema = pa.schema([(column.strip('"'), types[kind]) for column, _, kind in wanted])
    _table(database, name, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def _table(database: "duckdb.DuckDBPyConnection", name: str, table: pa.Table) -> None:
    database.register("incoming", table)
    database.execute(f'create table "{name}" as select * from incoming')  # noqa: S608 - names of our own
    database.unregister("incoming")


def _counts(database: "duckdb.DuckDBPyConnection") -> dict[str, int]:
    names = [name for (name,) in database.execute("select table_name from information_schema.tables").fetchall()]
    return {
        name: database.execute(f'select count(*) from "{name}"').fetchall()[0][0]  # noqa: S608 - names of our own
        for name in sorted(names)
        if not name.endswith("_of") and name not in ("pairs_files", "list_files")
    }
