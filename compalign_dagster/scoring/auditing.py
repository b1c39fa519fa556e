"""Whether cascades have kept their promise: audited rejects of a ledger against the cut that was made of the rest.

What belongs here: which audited pairs count, and what their plans allow. What does not: the arithmetic (`cascade.py`),
where the cut falls (the selection's; it comes as an argument).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.scoring.cascade import BOUND, Audit, Drawn, audit
from compalign_dagster.scoring.in_force import Cascade
from compalign_dagster.scoring.tables import AUDITED

Row = Mapping[str, Any]


def judged(ledger: Artifact, model_version: str, cut_of: Callable[[str], float | None]) -> tuple[Audit, float] | None:
    """What audited rejects say of all decisions, and the share that may differ; None where no cascade was used.

    `cut_of` a corpus is the least reward of a kept pair. Corpora without one take no part. Where rejects were made by
    several plans, the least of their bounds is that of all.
    """
    rows = [
        row
        for row in parquet.read(ledger.fetch("ledger.parquet")).to_pylist()
        if row["model_version"] == model_version and cut_of(corpus_of(row["shard"])) is not None
    ]
    turned_down = [row for row in rows if row["rejected_key"]]
    if not turned_down:
        return None
    found: dict[float, list[tuple[int, pa.Table]]] = defaultdict(list)
    bounds = []
    for cascade, bound, rejected, table in _by_batch(ledger, model_version, turned_down):
        found[cascade.audit].append((rejected, table))
        bounds.append(bound)
    drawn = []
    for parts in found.values():
        table = pa.concat_tables([table for _, table in parts])
        cuts = {corpus: cut_of(corpus) for corpus in map(str, table["corpus"].unique().to_pylist())}
        cut = np.array([cuts[str(corpus)] for corpus in table["corpus"].to_pylist()], np.float64)
        drawn.append(Drawn.of(table["reward"].to_numpy(), cut, sum(rejected for rejected, _ in parts)))
    lost = sum(row["rejected"] for row in turned_down) - sum(part.rejected for part in drawn)
    drawn.append(Drawn(lost, 0, 0))  # of batches that the store has lost, nothing is known
    bound = min(bounds, default=BOUND)
    return audit(drawn, pairs=sum(row["pairs"] for row in rows), bound=bound), bound


def _by_batch(
    ledger: Artifact, model_version: str, rows: Sequence[Row]
) -> Iterator[tuple[Cascade, float, int, pa.Table]]:
    """Of each batch with rejects: its cascade, the bound of its plan, how many, and the audited ones (AUDITED)."""
    shards: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        shards[row["batch"]].append(row)
    for source in ledger.inputs:
        batch = artifacts.load(ledger.store, source.key)
        cascade = Cascade.of(batch.manifest["config"]) if batch else None
        if batch is None or cascade is None or batch.facts["model_version"] != model_version:
            continue
        of = shards.pop(str(batch.partition), [])
        if of:
            table = parquet.read(batch.fetch("audited.parquet"), ["shard", "corpus", "reward"])
            names = pa.array([row["shard"] for row in of], AUDITED.field("shard").type)
            counted = table.filter(pc.is_in(table["shard"], names))
            yield cascade, batch.facts.get("bound", BOUND), sum(row["rejected"] for row in of), counted
