"""Claims about `raw_crawl`: every shard says what it was, and pairs have the shapes later stages read."""

import dagster as dg
import pyarrow as pa

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from assets.partitions import CRAWL_BATCHES
from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.tables import PAIRS
from resources.storage import Storage

_MOST_QUARANTINED = 0.5  # of a shard's captions; above it the shard is more likely broken than noisy


SPECS = [
    dg.AssetCheckSpec(
        asset=keys.RAW_CRAWL,
        name="shards_and_pairs_meet_expectations",
        blocking=True,
        partitions_def=CRAWL_BATCHES,
        description="Great Expectations: one row per shard (complete) and a seeded sample of pairs.",
    ),
    dg.AssetCheckSpec(
        asset=keys.RAW_CRAWL,
        name="most_captions_of_every_shard_are_usable",
        partitions_def=CRAWL_BATCHES,
        description="A warning for shards of which more than half of the captions were quarantined; all shards.",
    ),
]


def shards_and_pairs(storage: Storage, artifact: Artifact) -> dg.AssetCheckResult:
    """Statuses are known, most captions survive; ids, places and sizes look as documented."""
    import great_expectations.expectations as gxe

    shards = parquet.read(artifact.fetch("shards.parquet"))
    tables = [parquet.read(storage.store.fetch(key)) for key in map(str, shards["pairs_key"].to_pylist())]
    pairs, covers = seeded_sample(pa.concat_tables(tables) if tables else PAIRS.empty_table())
    return validate(
        [
            (
                "shards",
                shards,
                f"all {shards.num_rows:,} shards",
                [
                    gxe.ExpectColumnValuesToBeUnique(column="shard"),
                    gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["ok", "partial", "unreadable"]),
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
        name="shards_and_pairs_meet_expectations",
        severity=dg.AssetCheckSeverity.ERROR,
        may_be_empty=shards.num_rows == 0,  # a batch that only removes shards
    )


def usable_share(artifact: Artifact) -> dg.AssetCheckResult:
    """A shard above the share is more likely broken than noisy; it does not hold up its batch."""
    rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    bad = [
        f"{row['shard']}: {row['quarantined_captions']:,} of {row['captions']:,} captions"
        for row in rows
        if row["quarantined_captions"] > _MOST_QUARANTINED * row["captions"] or row["status"] == "unreadable"
    ]
    return dg.AssetCheckResult(
        check_name="most_captions_of_every_shard_are_usable",
        passed=not bad,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"shards": dg.MetadataValue.md("\n".join(f"- {text}" for text in bad[:50]) or "none")},
    )
