"""Where pairs lie: every delivery that was ever indexed, and the occurrences among them that somebody asks about.

What belongs here: reading indexes, also those of shards that were superseded or removed since. What does not: what was
decided about a pair (`trace.py`, `impact.py`) and what becomes of it (`takedown.py`).
"""

import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import polars as pl
import pyarrow as pa

from compalign_dagster import latest, parquet
from compalign_dagster.crawl.batches import read_log
from compalign_dagster.lineage.manifests import key_of
from compalign_dagster.selection import blocks, versions
from compalign_dagster.selection.blocks import Entry
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.versions import Published
from compalign_dagster.store import Store

log = logging.getLogger(__name__)

OCCURRENCE = ["shard", "key", "caption_index"]


@dataclass(frozen=True)
class Delivery:
    """One indexed delivery of a shard."""

    shard: str
    batch: str
    pairs_key: str  # store key of its pairs.parquet
    index_version: str  # data version of that index
    sha256: str  # of the shard's bytes
    bytes: int

    @property
    def index(self) -> str:
        """Manifest key of the index."""
        return key_of(self.pairs_key)

    @property
    def quarantine_key(self) -> str:
        """Store key of what was refused of it."""
        return f"{self.pairs_key.rpartition('/')[0]}/quarantine.parquet"


def deliveries(store: Store, *, batch: str | None = None) -> list[Delivery]:
    """Every delivery that an index was published of, live or not, in the order of the batch log; each once.

    A shard that left and came back has one index in two batches: the newer one counts.
    """
    found: dict[str, Delivery] = {}
    for key in [item.key for item in read_log(store)] if batch is None else [batch]:
        for artifact in latest.history(store, "raw_crawl", key):
            for row in parquet.read(artifact.fetch("shards.parquet")).to_pylist():
                found[row["pairs_key"]] = Delivery(
                    row["shard"], key, row["pairs_key"], row["index_version"], row["sha256"], row["bytes"]
                )
    return list(found.values())


def readable(store: Store) -> list[tuple[Published, Version]]:
    """Every version of the dataset with what it decided, oldest first; those of an earlier layout are left out."""
    found = []
    for item in versions.history(store):
        if "lists.parquet" in item.artifact.manifest["files"]:
            found.append((item, Version.open(item.artifact)))
        else:
            log.warning("version %s has an earlier layout and is left out: materialise it again", item.name)
    return found


def index_of(store: Store, delivery: Delivery, columns: list[str] | None = None) -> pl.DataFrame:
    """The pair index of a delivery (PAIRS)."""
    return pl.read_parquet(io.BytesIO(store.read(delivery.pairs_key)), columns=columns)


def reached(store: Store, entries: Iterable[Entry], among: Iterable[Delivery]) -> pl.DataFrame:
    """The occurrences that the entries name, one index in memory at a time.

    `shard, key, caption_index, pair_id, image_sha256, reason, request`, and `batch`, `pairs_key` of the delivery.
    """
    table = parquet.from_rows([asdict(entry) for entry in entries], blocks.BLOCKS)
    nothing = blocks.named([], table).with_columns(batch=pl.lit(""), pairs_key=pl.lit(""))
    return pl.concat([nothing, *_each(store, table, among)])


def _each(store: Store, table: pa.Table, among: Iterable[Delivery]) -> Iterator[pl.DataFrame]:
    for delivery in among:
        hits = blocks.named([index_of(store, delivery, blocks.COLUMNS)], table)
        if hits.height:
            yield hits.with_columns(batch=pl.lit(delivery.batch), pairs_key=pl.lit(delivery.pairs_key))
