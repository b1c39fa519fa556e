"""Near-duplicate images of a whole crawl: groups made of stored hashes, without reading an image again.

Rows go through DuckDB, which spills to disk beyond its budget; only distinct perceptual hashes are in
memory. What does not belong here: the search among hashes (`hamming.py`), and what to do about duplicates.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.crawl.hamming import components
from compalign_dagster.errors import InputError
from compalign_dagster.parquet import column

CODE_VERSION = 1
_COLUMNS = ["shard", "key", "image_sha256", "image_phash", "image_offset", "image_length"]
_ROWS = 65_536
_MEMORY_MIB = 1024  # of DuckDB

DUPLICATES = pa.schema(
    [
        column("group_id", pa.string(), "the smallest image_sha256 of the group"),
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("key", pa.string(), "sample key"),
        column("image_sha256", pa.string(), "SHA-256 of the image's bytes, hex"),
        column("image_phash", pa.string(), "perceptual hash, 64 bits in hex"),
        column("image_offset", pa.int64(), "where the image's bytes start in the plain (unpacked) tar, bytes"),
        column("image_length", pa.int64(), "how many bytes the image has"),
        column("group_size", pa.int64(), "samples in the group, 2 or more"),
        column("group_images", pa.int64(), "images of different bytes in the group"),
    ]
)


@dataclass(frozen=True)
class Duplicates:
    """What was found. `largest` has, per group, its id and sizes, largest first."""

    images: int  # samples with an image
    grouped: int  # of them, in a group of two or more
    exact: int  # of them, byte for byte the same as another
    groups: int
    largest: list[dict]


def find_duplicates(pairs: Iterable[Path], out: Path, *, distance: int, largest: int = 50) -> Duplicates:
    """Write the samples whose image occurs again, exactly or nearly, to `out` (DUPLICATES), by group.

    `pairs` are PAIRS tables; a sample with several captions counts once. Images belong together when
    their bytes are equal or a chain of images leads from one to the other whose perceptual hashes differ
    in at most `distance` bits at each step.

    Raises:
        InputError: when a table has no perceptual hashes.
    """
    with _database(out.parent) as database:
        database.sql(
            """
            create table images (shard text, key text, image_sha256 text, hash ubigint,
                                 image_offset bigint, image_length bigint)
            """
        )
        for path in pairs:
            batch = _hashes(path)  # noqa: F841 - DuckDB reads it by its name
            database.sql(
                """
                insert into images select distinct shard, key, image_sha256, ('0x' || image_phash)::ubigint,
                image_offset, image_length from batch
                """
            )
        distinct = database.sql("select distinct hash from images order by hash").fetchnumpy()["hash"]
        hashes = np.ascontiguousarray(distinct, np.uint64)
        columns = {"hash": pa.array(hashes), "label": pa.array(components(hashes, distance))}
        labelled = pa.table(columns)  # noqa: F841 - DuckDB reads it by its name
        database.sql(
            """
            create table groups as
            select label, min(image_sha256) group_id, count(*) group_size, count(distinct image_sha256) group_images
            from images join labelled using (hash) group by label having count(*) > 1
            """
        )
        rows = database.sql(
            """
            select group_id, shard, key, image_sha256, printf('%016x', hash) image_phash, image_offset, image_length,
                   group_size, group_images
            from images join labelled using (hash) join groups using (label) order by group_id, shard, key
            """
        ).to_arrow_reader(_ROWS)
        with pq.ParquetWriter(out, DUPLICATES, compression="zstd") as writer:
            for piece in rows:
                writer.write_table(pa.Table.from_batches([piece]).cast(DUPLICATES))
        [(images, again)] = database.sql(
            "select count(*), count(*) - count(distinct image_sha256) from images"
        ).fetchall()
        [(groups, grouped)] = database.sql("select count(*), coalesce(sum(group_size), 0) from groups").fetchall()
        shown = database.sql(
            "select group_id, group_size, group_images from groups order by group_size desc, group_id limit ?",
            params=[largest],
        ).to_arrow_table()
    return Duplicates(images, int(grouped), again, groups, shown.to_pylist())


def _hashes(path: Path) -> pa.Table:
    missing = set(_COLUMNS) - set(pq.read_schema(path).names)
    if missing:
        raise InputError(
            f"pair index {path}",
            expected=f"the columns {', '.join(_COLUMNS)}",
            found=f"no {', '.join(sorted(missing))}",
            remedy="Materialise raw_crawl of its batch again.",
        )
    return pq.read_table(path, columns=_COLUMNS)


@contextmanager
def _database(folder: Path) -> Iterator:
    """A database on disk in `folder` that spills there; it leaves no trace."""
    import duckdb

    file = folder / "duplicates.duckdb"
    settings = {"memory_limit": f"{_MEMORY_MIB}MiB", "temp_directory": str(folder / "spill")}
    try:
        with duckdb.connect(file, config={**settings}) as database:
            database.execute("set enable_progress_bar = false")  # it would print into a run's log
            yield database
    finally:
        for left in folder.glob("duplicates.duckdb*"):
            left.unlink()
