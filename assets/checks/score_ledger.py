"""Claims about `score_ledger`: every live shard once, enough of the crawl scored, and few wrongly turned down."""

from typing import Any

import dagster as dg
import numpy as np
import pyarrow.compute as pc

from assets import keys
from assets.checks.expectations import validate
from assets.cuts import Cuts, cuts_in_force
from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.scoring import in_force
from compalign_dagster.scoring.cascade import BOUND, Audit, audit
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
    dg.AssetCheckSpec(
        asset=keys.SCORE_LEDGER,
        name="cascade_changes_few_decisions",
        description="Decisions that differ from those of scoring every pair are at most the share that the cascade's "
        f"plan allows ({BOUND:.0%} by default), by rewards of audited rejects and the cut in force; the upper end of "
        "the 95 % interval decides.",
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


def cascade_changes_few_decisions(artifact: Artifact) -> dg.AssetCheckResult:
    """A warning while too few rejects were audited to tell; an error where more decisions differ than are allowed."""
    cuts = cuts_in_force(artifact.store)
    rows = parquet.read(artifact.fetch("ledger.parquet")).to_pylist()
    if not any(row["rejected_key"] for row in rows):
        return _few_decisions(True, "no cascade was used")
    if cuts is None:
        return _few_decisions(True, "no verdict: no dataset was filtered yet, so that there is no cut")
    bound = in_force.allowed(artifact.store, BOUND)
    found = judged(artifact, [row for row in rows if row["model_version"] == cuts.model_version], cuts, bound)
    return _few_decisions(
        found.passed,
        found.reason,
        proven=found.wrong.low > bound,
        allowed=bound,
        wrong_at_most=None if np.isnan(found.wrong.high) else float(found.wrong.high),
        audited=found.wrong.n,
    )


def judged(ledger: Artifact, rows: list[dict[str, Any]], cuts: Cuts, bound: float) -> Audit:
    """What audited rejects of these LEDGER rows say of all decisions; corpora without a cut take no part."""
    rows = [row for row in rows if cuts.of(corpus_of(row["shard"])) is not None]
    batches = {row["shard"]: row["batch"] for row in rows if row["rejected_key"]}
    reaches: list[bool] = []
    for source in ledger.inputs:
        batch = artifacts.load(ledger.store, source.key)
        if (
            batch is None
            or "audited.parquet" not in batch.names()
            or batch.facts["model_version"] != cuts.model_version
        ):
            continue
        for row in parquet.read(batch.fetch("audited.parquet"), ["shard", "corpus", "reward"]).to_pylist():
            cut = cuts.of(row["corpus"])
            if cut is not None and batches.get(row["shard"]) == batch.partition:
                reaches.append(row["reward"] >= cut)
    return audit(
        np.array(reaches, np.float64),
        0.5,
        rejected=sum(row["rejected"] for row in rows),
        pairs=sum(row["pairs"] for row in rows),
        bound=bound,
    )


def _few_decisions(passed: bool, verdict: str, *, proven: bool = False, **facts: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="cascade_changes_few_decisions",
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if proven else dg.AssetCheckSeverity.WARN,
        metadata={"verdict": verdict, **{name: value for name, value in facts.items() if value is not None}},
    )
