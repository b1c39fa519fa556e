"""The pairs of a version as tables, a shard at a time, and the proof that an image is the one that was kept.

What belongs here: captions from the pair indices, rows of KEPT and DROPPED. What does not: which pairs those
are (`version.py`), orders for training (`reading.py`), files (`resharding.py`, the command line).
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from compalign_dagster.crawl.index import make_pair_id
from compalign_dagster.errors import InputError
from compalign_dagster.selection.tables import DROPPED, KEPT
from compalign_dagster.selection.version import Version
from compalign_dagster.store import ObjectMissingError, Store

PAIR = ["pair_id", "shard", "key", "caption_index"]
PLACED = [*PAIR, "corpus", "reward", "image_offset", "image_length"]


class PairChangedError(InputError):
    """Where a kept pair lay there are other bytes by now, or none."""


def kept_frames(version: Version) -> Iterator[pl.DataFrame]:
    """The kept pairs by batch and shard, columns of `tables.KEPT`, in reading order; a batch and a shard in memory.

    Raises:
        PairChangedError: for a pair that its shard's index does not have any more.
    """
    keys = index_keys(version)
    for batch in version.batches():
        for rows in version.kept(batch, PLACED).partition_by("shard", maintain_order=True):
            found = with_captions(rows, version.store, keys)
            gone = found.filter(pl.col("caption").is_null())
            if gone.height:
                raise changed(gone.row(0, named=True), "no such pair in the shard's index")
            yield found.select(KEPT.names)


def dropped_frames(version: Version) -> Iterator[pl.DataFrame]:
    """The dropped pairs by batch, columns of `tables.DROPPED`, by (shard, key, caption_index)."""
    for batch in version.batches():
        rows = version.decided(batch, DROPPED.names).filter(pl.col("reason").is_not_null())
        yield rows.select(DROPPED.names).sort("shard", "key", "caption_index")


def index_keys(version: Version) -> dict[str, str]:
    """Where the pair index of each shard lies in the store."""
    return dict(version.shard_keys.select("shard", "pairs_key").iter_rows())


def with_captions(rows: pl.DataFrame, store: Store, keys: Mapping[str, str]) -> pl.DataFrame:
    """Rows with `caption`, in their order; null where the shard's index does not have the pair any more."""
    found = [_captions(part, store, keys) for part in rows.partition_by("shard")]
    if not found:
        return rows.with_columns(caption=pl.lit(None, pl.String))
    return rows.join(pl.concat(found), on=PAIR, how="left", maintain_order="left")


def proved(pair: Mapping[str, Any], image: bytes) -> bytes:
    """The image, when it and the pair's `caption` give the pair's `pair_id`.

    Raises:
        PairChangedError: when they do not.
    """
    if pair["caption"] is None:
        raise changed(pair, "no such pair in the shard's index")
    found = make_pair_id(hashlib.sha256(image).digest(), pair["caption"].encode())
    if found != pair["pair_id"]:
        raise changed(pair, f"those of pair {found}")
    return image


def changed(pair: Mapping[str, Any], found: str) -> PairChangedError:
    """The error for a pair that is not there any more; `found` says what is."""
    return PairChangedError(
        f"pair {pair['pair_id']} ({pair['shard']}, sample {pair['key']}, caption {pair['caption_index']})",
        expected="the image and caption that were kept",
        found=found.rstrip("."),
        remedy="The shard changed or the pair was taken down: filter again; a reader can also skip such pairs.",
    )


def _captions(rows: pl.DataFrame, store: Store, keys: Mapping[str, str]) -> pl.DataFrame:
    """The captions of rows of one shard. Not by `fetch`, whose copies from a bucket stay."""
    wanted = rows.select(PAIR)
    try:
        data = store.read(keys[wanted["shard"][0]])
    except ObjectMissingError:
        return wanted.clear().with_columns(caption=pl.lit(None, pl.String))
    index = pl.read_parquet(io.BytesIO(data), columns=[*PAIR, "caption"])
    there = index.filter(pl.col("caption") != "")  # a caption that was purged is empty; no pair's is
    return there.join(wanted, on=PAIR, how="semi").unique(PAIR)
