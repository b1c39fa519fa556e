"""The crawl as it is now: for every live shard, the batch that brought it and its published index.

The batch log says which shards are live; the newest `raw_crawl` artifact of their batch says where
their pairs are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from compalign_dagster import latest, parquet
from compalign_dagster.crawl.batches import ShardStamp, live_shards, read_log
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store


@dataclass(frozen=True)
class IndexedShard:
    """One live shard whose index is published."""

    shard: str
    batch: str
    pairs_key: str  # store key of its pairs.parquet
    index_version: str  # data version of its index
    pairs: int
    delivery: ShardStamp  # the bytes that were indexed, as the batch log knows them


def indexed_shards(store: Store, batch: str | None = None) -> list[IndexedShard]:
    """Live shards with a published index, of one batch or of all, sorted by name."""
    live = live_shards(read_log(store))
    wanted = sorted({key for key, _ in live.values()} if batch is None else {batch})
    found = []
    for key in wanted:
        artifact = latest.latest(store, "raw_crawl", key)
        rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist() if artifact else []
        found += [
            IndexedShard(row["shard"], key, row["pairs_key"], row["index_version"], row["pairs"], live[row["shard"]][1])
            for row in rows
            if row["shard"] in live and live[row["shard"]][0] == key
        ]
    return sorted(found, key=lambda shard: shard.shard)


def earliest_indexed(store: Store) -> list[IndexedShard]:
    """The indexed live shards of the earliest batch that has any, sorted by name.

    What a reward model sees of the crawl: it stays the same while the crawl grows, and there is still one after
    the first delivery was replaced.
    """
    for batch in sorted({key for key, _ in live_shards(read_log(store)).values()}):
        found = indexed_shards(store, batch)
        if found:
            return found
    return []


def is_delivered(landing: Store, item: ShardStamp) -> bool:
    """Whether what lies in the landing folder now is the delivery that the batch log names."""
    try:
        now = landing.stat(item.shard)
    except FileNotFoundError:
        return False
    return (now.size, now.stamp) == (item.size, item.stamp)


def require_delivered(landing: Store, item: ShardStamp) -> None:
    """Refuse to read a shard that was written over or taken away since its batch was sealed."""
    if not is_delivered(landing, item):
        raise CompalignError(
            f"shard {item.shard} in {landing.url}",
            expected=f"the delivery of {item.size} bytes that its batch names",
            found="another file, or none",
            remedy="Run land_batch: it seals what lies there now, and this batch goes on without the shard.",
        )


def pairs_of(store: Store, shards: Iterable[IndexedShard]) -> pa.Table:
    """The pairs of these shards, in shard order, in memory."""
    tables = [parquet.read(store.fetch(shard.pairs_key)) for shard in shards]
    return pa.concat_tables(tables) if tables else PAIRS.empty_table()
