"""The crawl as it is now: for every live shard, the batch that brought it and its published index.

The batch log says which shards are live; the newest `raw_crawl` artifact of their batch says where
their pairs are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from compalign_dagster import latest, parquet
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.store import Store


@dataclass(frozen=True)
class IndexedShard:
    """One live shard whose index is published."""

    shard: str
    batch: str
    pairs_key: str  # store key of its pairs.parquet
    index_version: str  # data version of its index
    pairs: int


def indexed_shards(store: Store, batch: str | None = None) -> list[IndexedShard]:
    """Live shards with a published index, of one batch or of all, sorted by name."""
    live = live_shards(read_log(store))
    wanted = sorted({key for key, _ in live.values()} if batch is None else {batch})
    found = []
    for key in wanted:
        artifact = latest.latest(store, "raw_crawl", key)
        rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist() if artifact else []
        found += [
            IndexedShard(row["shard"], key, row["pairs_key"], row["index_version"], row["pairs"])
            for row in rows
            if row["shard"] in live and live[row["shard"]][0] == key
        ]
    return sorted(found, key=lambda shard: shard.shard)


def pairs_of(store: Store, shards: Iterable[IndexedShard]) -> pa.Table:
    """The pairs of these shards, in shard order, in memory."""
    tables = [parquet.read(store.fetch(shard.pairs_key)) for shard in shards]
    return pa.concat_tables(tables) if tables else PAIRS.empty_table()
