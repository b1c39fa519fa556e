"""Claims about `score_ledger`: every live shard once, and enough of the crawl scored."""

import dagster as dg
import pyarrow.compute as pc

from assets import keys
from assets.checks.expectations import validate
from compalign_dagster import latest, parquet
from compalign_dagster.settings import Settings
from resources.storage import Storage


@dg.asset_check(
    asset=keys.SCORE_LEDGER,
    name="ledger_meets_expectations",
    blocking=True,
    description="Great Expectations over every row of the ledger, one per shard and model.",
)
def ledger_meets_expectations(storage: Storage) -> dg.AssetCheckResult:
    """No shard twice for one model; pairs = scored + quarantined."""
    import great_expectations.expectations as gxe

    artifact = latest.require(storage.store, keys.SCORE_LEDGER.to_user_string())
    ledger = parquet.read(artifact.fetch("ledger.parquet"))
    accounted = pc.add(ledger["scored"], ledger["quarantined"])
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
        severity=dg.AssetCheckSeverity.ERROR,
    )


@dg.asset_check(
    asset=keys.SCORE_LEDGER,
    name="a_model_covers_the_live_crawl",
    description="Share of live shards scored by the model that a new filtered dataset would use.",
)
def a_model_covers_the_live_crawl(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """A warning: the next filtered dataset leaves out shards that are landed but not scored yet."""
    artifact = latest.require(storage.store, keys.SCORE_LEDGER.to_user_string())
    best = max((entry["coverage"] for entry in artifact.facts["coverage"]), default=0.0)
    return dg.AssetCheckResult(
        passed=best >= settings.min_coverage,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"coverage": best, "wanted": settings.min_coverage},
    )
