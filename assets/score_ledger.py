"""`score_ledger`: which scores are in force for every live shard, all batches folded in order.

It stands between the partitioned and the unpartitioned half of the graph: Dagster's staleness gives
up at a fan-in of 100 partitions.
"""

import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from assets import keys
from assets.checks import score_ledger as checks
from assets.reporting import counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.reward.promoted import promoted, promotions
from compalign_dagster.scoring import tables
from compalign_dagster.scoring.ledger import coverage, fold
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from compalign_dagster.versions import digest_json, work_key
from resources.storage import Storage

KIND = keys.SCORE_LEDGER.to_user_string()
CODE_VERSION = 2
_MODELS_KEPT = 2  # the promoted one, and the one before it, which serves until coverage suffices


@dg.asset(
    key=keys.SCORE_LEDGER,
    deps=[keys.SCORED_SHARDS, keys.PROMOTED_MODEL],
    group_name=keys.DATASET_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet"},
    code_version=str(CODE_VERSION),
    check_specs=checks.SPECS,
)
def score_ledger(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult:
    """One row per live shard and model: where its scores are, and of which batch.

    Batches are folded in the order of the batch log: added, superseded, removed.
    """
    artifact, reused = publish_ledger(storage.store)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["rows"],
        schema=tables.LEDGER,
        metadata={
            "live shards": facts["live_shards"],
            "batches": facts["batches"],
            "pairs scored by the promoted model": facts["scored"],
            "coverage of the promoted model": facts["coverage"][0]["coverage"],
            "coverage": dg.MetadataValue.json(facts["coverage"]),
            "shards by batch": counts_table("batch", facts["shards_by_batch"]),
        },
        checks=[
            checks.ledger_meets_expectations(artifact),
            checks.a_model_covers_the_live_crawl(artifact, settings),
        ],
    )


def publish_ledger(store: Store) -> tuple[Artifact, bool]:
    """The ledger of the crawl as it is now."""
    log = read_log(store)
    live = {shard: batch for shard, (batch, _) in live_shards(log).items()}
    models = promotions(store)[:_MODELS_KEPT]
    versions = [model.facts["model_version"] for model in models]
    rows, inputs = _scored_rows(store, [batch.key for batch in log], versions)
    ledger = pa.concat_tables(
        [fold(live, [row for row in rows if row["model_version"] == version]) for version in versions]
        or [tables.LEDGER.empty_table()]
    )
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[versions, digest_json(ledger.to_pylist()), sorted(live.items()), len(log)],
        config={},
    )

    def make() -> Artifact:
        by_model = [
            {
                "model_version": version,
                "coverage": coverage(ledger.filter(pc.equal(ledger["model_version"], version)), live),
            }
            for version in versions
        ]
        promoted_rows = [row for row in ledger.to_pylist() if versions and row["model_version"] == versions[0]]
        facts: dict[str, Any] = {
            "rows": ledger.num_rows,
            "live_shards": len(live),
            "batches": len(log),
            "scored": sum(row["scored"] for row in promoted_rows),
            "coverage": by_model,
            "shards_by_batch": {batch.key: sum(1 for at in live.values() if at == batch.key) for batch in log},
        }
        with tempfile.TemporaryDirectory() as folder:
            return artifacts.publish(
                store,
                KIND,
                key,
                {"ledger.parquet": parquet.write(ledger, Path(folder, "ledger.parquet"))},
                code_version=CODE_VERSION,
                inputs=[item.as_input() for item in inputs],
                config={},
                facts=facts,
            )

    promoted(store)  # a ledger without a model would say nothing
    return latest.reuse_or_make(store, KIND, key, make)


def _scored_rows(store: Store, batches: list[str], versions: list[str]) -> tuple[list[dict], list[Artifact]]:
    """Ledger rows of the newest scores of each batch by each of these models, and where they come from."""
    rows, used = [], []
    for batch in batches:
        newest: dict[str, Artifact] = {}
        for artifact in latest.history(store, keys.SCORED_SHARDS.to_user_string(), batch):
            newest[artifact.facts["model_version"]] = artifact
        for version in versions:
            if version in newest:
                rows += parquet.read(newest[version].fetch("shards.parquet")).to_pylist()
                used.append(newest[version])
    return rows, used
