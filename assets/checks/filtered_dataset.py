"""Claims about `filtered_dataset`: kept is kept once, above the cut, and its lineage verifies from files."""

import dagster as dg
import duckdb

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage.chain import verify

SPECS = [
    dg.AssetCheckSpec(
        asset=keys.FILTERED_DATASET,
        name="dataset_meets_expectations",
        blocking=True,
        description="Great Expectations: one row per shard made by DuckDB (complete) and a sample of kept pairs.",
    ),
    dg.AssetCheckSpec(
        asset=keys.FILTERED_DATASET,
        name="lineage_verifies_from_files",
        description="Walks the manifests from the dataset to the index of every landed shard; compares digests.",
    ),
]


def dataset_meets_expectations(artifact: Artifact) -> dg.AssetCheckResult:
    """No kept occurrence was dropped too; places and ids are readable."""
    import great_expectations.expectations as gxe

    kept, covers = seeded_sample(parquet.read(artifact.fetch("kept.parquet")))
    with duckdb.connect() as connection:
        shards = connection.sql(
            """
            with kept as (select shard, key, caption_index, reward from read_parquet(?)),
                 dropped as (select shard, key, caption_index, reason from read_parquet(?))
            select coalesce(k.shard, d.shard) as shard,
                   count(*) filter (k.shard is not null and d.shard is not null) as in_both,
                   count(*) filter (d.shard is not null and d.reason is null) as without_reason,
                   count(*) - count(distinct (coalesce(k.key, d.key), coalesce(k.caption_index, d.caption_index)))
                       as repeated
            from kept k full join dropped d using (shard, key, caption_index)
            group by 1 order by 1
            """,
            params=[str(artifact.fetch("kept.parquet")), str(artifact.fetch("dropped.parquet"))],
        ).to_arrow_table()
    return validate(
        [
            (
                "shards",
                shards,
                f"all {artifact.facts['pairs']:,} pairs, aggregated per shard",
                [
                    gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[0])
                    for column in ("in_both", "without_reason", "repeated")
                ],
            ),
            (
                "kept",
                kept,
                covers,
                [
                    gxe.ExpectColumnValuesToMatchRegex(column="pair_id", regex="^[0-9a-f]{32}$"),
                    gxe.ExpectColumnValuesToBeBetween(column="image_length", min_value=1),
                    gxe.ExpectColumnValuesToNotBeNull(column="reward"),
                ],
            ),
        ],
        name="dataset_meets_expectations",
        severity=dg.AssetCheckSeverity.ERROR,
    )


def lineage_verifies(artifact: Artifact) -> dg.AssetCheckResult:
    """Every input that a manifest names exists and is what it was."""
    problems = verify(artifact)
    return dg.AssetCheckResult(
        check_name="lineage_verifies_from_files",
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"problems": dg.MetadataValue.md("\n".join(f"- {text}" for text in problems[:20]) or "none")},
    )
