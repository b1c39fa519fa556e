"""The ledger: which live shard has which scores, one row a shard, over every batch.

It stands between the partitioned and the unpartitioned half of the graph. Scores of shards that were
superseded or removed are left out; live shards without scores are missing and lower the coverage.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from compalign_dagster.errors import ConservationError
from compalign_dagster.parquet import from_rows
from compalign_dagster.scoring.tables import LEDGER


def fold(live: Mapping[str, str], scored: Iterable[Mapping[str, Any]]) -> pa.Table:
    """One LEDGER row for each live shard that has scores, sorted by shard.

    `live` maps shard names to the batch that delivered their present bytes. `scored` are LEDGER rows
    in any order; those of another batch are history and are passed over. Raises `ConservationError` when
    a row's pairs are not scored + rejected + quarantined, or when two rows claim one shard and batch.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    for given in scored:
        row = {"rejected": 0, "rejected_key": None, **given}  # a table of scores made without cascades may lack them
        shard = row["shard"]
        if row["pairs"] != row["scored"] + row["rejected"] + row["quarantined"]:
            raise ConservationError(
                f"scores of shard {shard} in {row['batch']}",
                expected=f"{row['pairs']} pairs scored, rejected by a cascade, or quarantined",
                found=f"{row['scored']} + {row['rejected']} + {row['quarantined']}",
                remedy="Score the shard again.",
            )
        if live.get(shard) != row["batch"]:
            continue
        if shard in rows and dict(rows[shard]) != dict(row):
            raise ConservationError(
                f"scores of shard {shard} in {row['batch']}",
                expected="one set of scores",
                found=f"two, of work {rows[shard]['work_key']} and {row['work_key']}",
                remedy="Give the scores of one model and one code version.",
            )
        rows[shard] = row
    return from_rows([dict(rows[shard]) for shard in sorted(rows)], LEDGER)


def coverage(ledger: pa.Table, live: Mapping[str, str]) -> float:
    """Share of live shards that the ledger has scores for, 0 to 1; 1 when nothing is live."""
    if not live:
        return 1.0
    have = set(zip(ledger["shard"].to_pylist(), ledger["batch"].to_pylist(), strict=True))
    return len(have & set(live.items())) / len(live)
