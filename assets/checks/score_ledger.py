"""Claims about `score_ledger`: every live shard once, and enough of the crawl scored."""

import dagster as dg
import pyarrow.compute as pc

from assets import keys
from assets.checks.expectations import validate
from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.settings import Settings

SPECS = [
    dg.AssetCheckSpec(
        asset=keys.SCORE_LEDGER,
        name="ledger_meets_expectations",
        blocking=True,
        description="Great Expectations over every row of the ledger, one per shard and model.",
    ),
    dg.AssetCheckSpec(
        asset=keys.SCORE_LEDGER,
        name="a_model_covers_the_live_crawl",
        description="Share of live shards scored by the model that a new filtered dataset would use.",
    ),
]


def ledger_meets_expectations(artifact: Artifact) -> dg.AssetCheckResult:
    """No shard twice for one model; pairs = scored + rejected + quarantined."""
    import great_expectations.expectations as gxe

    ledger = parquet.read(artifact.fetch("ledger.parquet"))
    accounted = pc.add(pc.add(ledger["scored"], ledger["rejected"]), ledger["quarantined"])
    return validate(
        [
            (
                "ledger",
                ledger.append_column("accounted", accounted),
                f"all {ledger.num_rows:,} rows",
                [
                    gxe.ExpectCompoundColumnsToBeUnique(column_list=["shard", "model_version"]),
                    gxe.ExpectColumnPairValuesToBeEqual(column_A="pairs", column_B="accounted"),
                ],
            )
        ],
        name="ledger_meets_expectations",
        severity=dg.AssetCheckSeverity.ERROR,
    )


def a_model_covers_the_live_crawl(artifact: Artifact, settings: Settings) -> dg.AssetCheckResult:
    """A warning: the next filtered dataset leaves out shards that are landed but not scored yet."""
    best = max((entry["coverage"] for entry in artifact.facts["coverage"]), default=0.0)
    return dg.AssetCheckResult(
        check_name="a_model_covers_the_live_crawl",
        passed=best >= settings.min_coverage,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"coverage": best, "wanted": settings.min_coverage},
    )
