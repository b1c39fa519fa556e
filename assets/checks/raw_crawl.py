"""Claims about `raw_crawl`: every shard says what it was, and pairs have the shapes later stages read."""

import dagster as dg

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from assets.partitions import CRAWL_BATCHES
from compalign_dagster import latest, parquet
from compalign_dagster.crawl.live import indexed_shards, pairs_of
from resources.storage import Storage

_MOST_QUARANTINED = 0.5  # of a shard's captions; above it the shard is more likely broken than noisy


@dg.asset_check(
    asset=keys.RAW_CRAWL,
    name="shards_and_pairs_meet_expectations",
    blocking=True,
    partitions_def=CRAWL_BATCHES,
    description="Great Expectations: one row per shard (complete) and a seeded sample of pairs.",
)
def shards_and_pairs(context: dg.AssetCheckExecutionContext, storage: Storage) -> dg.AssetCheckResult:
    """Statuses are known, most captions survive; ids, places and sizes look as documented."""
    import great_expectations.expectations as gxe

    artifact = latest.require(storage.store, keys.RAW_CRAWL.to_user_string(), context.partition_key)
    shards = parquet.read(artifact.fetch("shards.parquet"))
    share = [row["quarantined_captions"] / row["captions"] if row["captions"] else 0.0 for row in shards.to_pylist()]
    shards = shards.append_column("quarantined_share", [share])
    pairs, covers = seeded_sample(pairs_of(storage.store, indexed_shards(storage.store, context.partition_key)))
    return validate(
        [
            (
                "shards",
                shards,
                f"all {shards.num_rows:,} shards",
                [
                    gxe.ExpectColumnValuesToBeUnique(column="shard"),
                    gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["ok", "partial", "unreadable"]),
                    gxe.ExpectColumnValuesToBeBetween(column="quarantined_share", max_value=_MOST_QUARANTINED),
                    gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
                ],
            ),
            (
                "pairs",
                pairs,
                covers,
                [
                    gxe.ExpectColumnValuesToMatchRegex(column="pair_id", regex="^[0-9a-f]{32}$"),
                    gxe.ExpectColumnValuesToMatchRegex(column="image_sha256", regex="^[0-9a-f]{64}$"),
                    gxe.ExpectColumnValuesToBeBetween(column="width", min_value=1),
                    gxe.ExpectColumnValuesToBeBetween(column="height", min_value=1),
                    gxe.ExpectColumnValuesToBeBetween(column="image_length", min_value=1),
                    gxe.ExpectColumnValueLengthsToBeBetween(column="caption", min_value=1),
                ],
            ),
        ],
        severity=dg.AssetCheckSeverity.ERROR,
    )
