"""Which pairs of a batch the block list names, remembered: found again while neither of them changes.

What belongs here: the matches of one batch with one block list. What does not: matching (`blocks.py`), and what
becomes of a match (`ranked.py`).

It is a memo and no source: a list is made of indexes and a block list, which is what manifests name as inputs and what
`compalign verify` matches anew. So one that a later block list has followed may go at any time (`prune.py`).
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.selection import blocks
from compalign_dagster.selection.tables import BLOCKED
from compalign_dagster.selection.version import frame_of
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key

KIND = "blocked_pairs"
CODE_VERSION = 1  # raise it when the same index and block list give other matches

_FILE = "blocked.parquet"


def of_batch(
    store: Store, batch: str, rows: Sequence[Mapping[str, Any]], block_list: Artifact | None, entries: pa.Table
) -> pl.DataFrame | None:
    """The occurrences (BLOCKED) of a batch's shards that a block list with these `entries` names; None of none.

    `rows` are the ledger's. The indexes are read where nobody has matched them with this list before, one at a time.
    """
    if block_list is None or not entries.num_rows:
        return None
    rows = sorted(rows, key=lambda row: row["shard"])
    indexes = [[row["shard"], row["index_version"]] for row in rows]
    key = work_key(KIND, code_version=CODE_VERSION, inputs=[block_list.data_version, indexes], config={})
    found = artifacts.find(store, KIND, key, batch) or _publish(store, batch, rows, block_list, entries, key)
    if not found.facts["pairs"]:
        return None
    found.verify()
    return frame_of(found, _FILE)


def _publish(
    store: Store,
    batch: str,
    rows: Sequence[Mapping[str, Any]],
    block_list: Artifact,
    entries: pa.Table,
    key: str,
) -> Artifact:
    matches = blocks.matches((io.BytesIO(store.read(row["pairs_key"])) for row in rows), entries)
    with tempfile.TemporaryDirectory() as folder:
        return artifacts.publish(
            store,
            KIND,
            key,
            {_FILE: parquet.write(matches.to_arrow().cast(BLOCKED), Path(folder, _FILE))},
            code_version=CODE_VERSION,
            inputs=[
                block_list.as_input(),
                *(Input("raw_crawl_shards", row["pairs_key"], row["index_version"]) for row in rows),
            ],
            config={},
            facts={"batch": batch, "pairs": matches.height},
            partition=batch,
        )
