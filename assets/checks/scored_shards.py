"""Claims about `scored_shards`: rewards vary in every shard and baselines lie in their ranges."""

import dagster as dg
import duckdb
import pyarrow as pa

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from assets.partitions import CRAWL_BATCHES
from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.scoring.tables import SCORES
from resources.storage import Storage

_LEAST_ROWS_TO_VARY = 10  # a shard of a few pairs may well have equal rewards


SPECS = [
    dg.AssetCheckSpec(
        asset=keys.SCORED_SHARDS,
        name="scores_meet_expectations",
        blocking=True,
        partitions_def=CRAWL_BATCHES,
        description="Great Expectations: one row per shard made by DuckDB (complete) and a seeded sample of scores.",
    ),
]


def scores(storage: Storage, artifact: Artifact) -> dg.AssetCheckResult:
    """A constant reward is a broken model; one model per batch; cosine and ITM lie in their ranges."""
    import great_expectations.expectations as gxe

    rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    paths = [str(storage.store.fetch(row["scores_key"])) for row in rows if row["scored"]]
    shards = per_shard(paths)
    tables = [parquet.read(storage.store.fetch(row["scores_key"])) for row in rows]
    sample, covers = seeded_sample(pa.concat_tables(tables) if tables else SCORES.empty_table())
    return validate(
        [
            (
                "shards",
                shards,
                f"all {sum(row['scored'] for row in rows):,} scores, aggregated per shard",
                [
                    gxe.ExpectColumnValuesToBeBetween(column="models", min_value=1, max_value=1),
                    gxe.ExpectColumnValuesToBeBetween(column="spread", min_value=0, strict_min=True),
                ],
            ),
            (
                "scores",
                sample,
                covers,
                [
                    gxe.ExpectColumnValuesToMatchRegex(column="pair_id", regex="^[0-9a-f]{32}$"),
                    gxe.ExpectColumnValuesToBeBetween(column="cosine", min_value=-1.0001, max_value=1.0001),
                    gxe.ExpectColumnValuesToBeBetween(column="itm", min_value=0, max_value=1),
                ],
            ),
        ],
        name="scores_meet_expectations",
        severity=dg.AssetCheckSeverity.ERROR,
        may_be_empty=not rows,  # every shard of the batch was superseded or removed since
    )


def per_shard(paths: list[str]) -> pa.Table:
    """One row per shard over every score: pairs, models and the spread of rewards (null when few)."""
    if not paths:
        return pa.table({"shard": [], "models": [], "spread": []})
    with duckdb.connect() as connection:
        return connection.sql(
            """
            select shard, count(*) as pairs, count(distinct model_version) as models,
                   case when count(*) >= ? then stddev_pop(reward) end as spread
            from read_parquet(?) group by shard order by shard
            """,
            params=[_LEAST_ROWS_TO_VARY, paths],
        ).to_arrow_table()
