"""`scored_shards`: one reward per pair of a batch, with the baselines evaluation needs."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb

from assets import keys
from assets.checks import scored_shards as checks
from assets.needs import SCORING
from assets.partitions import CRAWL_BATCHES
from assets.reporting import claim, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, indexed_shards, require_delivered
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.reward.promoted import promoted
from compalign_dagster.scoring import tables
from compalign_dagster.scoring.tables import CODE_VERSION
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

KIND = keys.SCORED_SHARDS.to_user_string()
SHARD_KIND = "scored_shards_shards"

log = logging.getLogger(f"compalign_dagster.{__name__}")


@dg.asset(
    key=keys.SCORED_SHARDS,
    partitions_def=CRAWL_BATCHES,
    deps=[keys.RAW_CRAWL, keys.PROMOTED_MODEL],
    group_name=keys.CRAWL_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet", "pytorch"},
    code_version=str(CODE_VERSION),
    pool=SCORING.dagster_pool(),
    op_tags=SCORING.k8s_op_tags(),
    check_specs=[
        dg.AssetCheckSpec(
            "every_pair_has_one_finite_reward_or_a_reason",
            asset=keys.SCORED_SHARDS,
            blocking=True,
            partitions_def=CRAWL_BATCHES,
            description="Exact SQL over all rows: pairs = scored + quarantined, no occurrence twice, no NaN.",
        ),
        *checks.SPECS,
    ],
)
def scored_shards(
    context: dg.AssetExecutionContext, storage: Storage, accelerator: Accelerator
) -> dg.MaterializeResult:
    """Rewards of the promoted model, one table per shard; image-text cosine and ITM beside them.

    Published shard by shard: a crash repeats at most the shard it interrupted.
    """
    artifact, reused = score_batch(storage, accelerator, context.partition_key)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["scored"],
        schema=tables.SCORES,
        metadata={
            name: facts[name]
            for name in ("model_version", "shards", "pairs", "scored", "quarantined", "mean_reward", "device",
                         "pairs_per_second")
            if facts[name] is not None
        },
        checks=[
            claim("every_pair_has_one_finite_reward_or_a_reason", facts["problems"]),
            checks.scores(storage, artifact),
        ],
    )  # fmt: skip


def score_batch(storage: Storage, accelerator: Accelerator, batch: str) -> tuple[Artifact, bool]:
    """The published scores of a batch's live shards by the promoted model."""
    store = storage.store
    raw = latest.require(store, keys.RAW_CRAWL.to_user_string(), batch)
    model = promoted(store)
    shards = indexed_shards(store, batch)
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[model.facts["model_version"], [[shard.shard, shard.index_version] for shard in shards]],
        config=accelerator.changes_bytes(),
    )

    def make() -> Artifact:
        with tempfile.TemporaryDirectory() as folder:
            scored = _score_shards(storage, accelerator, model, shards, Path(folder))
            path = parquet.write(
                parquet.from_rows([row for row, _ in scored], tables.LEDGER), Path(folder, "shards.parquet")
            )
            return artifacts.publish(
                store,
                KIND,
                key,
                {"shards.parquet": path},
                code_version=CODE_VERSION,
                inputs=[raw.as_input(), model.as_input(), *(item.as_input() for _, item in scored)],
                config=accelerator.changes_bytes(),
                facts=_facts(store, model, scored),
                partition=batch,
            )

    return latest.reuse_or_make(store, KIND, key, make, batch)


def _score_shards(
    storage: Storage, accelerator: Accelerator, model: Artifact, shards: list[IndexedShard], folder: Path
) -> list[tuple[dict, Artifact]]:
    """Score what is not scored yet; the model is loaded only when there is something to score."""
    network, scored = None, []
    for at, shard in enumerate(shards, start=1):
        key = work_key(
            SHARD_KIND,
            code_version=CODE_VERSION,
            inputs=[model.facts["model_version"], shard.shard, shard.index_version],
            config=accelerator.changes_bytes(),
        )
        artifact = artifacts.find(storage.store, SHARD_KIND, key)
        if artifact is None:
            if network is None:
                from compalign_dagster.reward.folder import load_model

                network = load_model(model.checkout(folder / "model"), device=accelerator.pick())
            artifact = _score_shard(storage, accelerator, model, network, shard, key, folder)
        row = {
            "shard": shard.shard,
            "batch": shard.batch,
            "model_version": model.facts["model_version"],
            "scores_key": artifact.file_key("scores.parquet"),
            "work_key": key,
            "data_version": artifact.data_version,
            "pairs_key": shard.pairs_key,
            "index_version": shard.index_version,
            "pairs": shard.pairs,
            "scored": artifact.facts["scored"],
            "quarantined": artifact.facts["quarantined"],
        }
        scored.append((row, artifact))
        log.info("scored_shards %s: %d of %d shards, %s", shard.batch, at, len(shards), shard.shard)
    return scored


def _score_shard(
    storage: Storage,
    accelerator: Accelerator,
    model: Artifact,
    network: Any,
    shard: IndexedShard,
    key: str,
    folder: Path,
) -> Artifact:
    from compalign_dagster.scoring.engine import ScoringConfig, score_shard

    config = ScoringConfig(
        precision=accelerator.precision,
        image_pixels=accelerator.image_pixels,
        device=accelerator.pick(),
        batch_images=accelerator.batch_images,
    )
    pairs = parquet.read(storage.store.fetch(shard.pairs_key))
    landing = storage.landing
    require_delivered(landing, shard.delivery)
    result = score_shard(
        network,
        model.facts["model_version"],
        Shard(shard.shard, landing, shard.shard, shard.delivery.stamp),
        pairs,
        config,
    )
    require_delivered(landing, shard.delivery)  # on a disk it may have been written over in place while it was read
    return artifacts.publish(
        storage.store,
        SHARD_KIND,
        key,
        {
            "scores.parquet": parquet.write(result.scores, folder / "scores.parquet"),
            "quarantine.parquet": parquet.write(result.quarantine, folder / "quarantine.parquet"),
        },
        code_version=CODE_VERSION,
        inputs=[artifacts.Input("raw_crawl_shards", shard.pairs_key, shard.index_version), model.as_input()],
        config=accelerator.changes_bytes(),
        facts={
            "scored": result.scores.num_rows,
            "quarantined": result.quarantine.num_rows,
            "seconds": round(result.seconds, 3),
            "device": config.device,
        },
    )


def _facts(store: Store, model: Artifact, scored: list[tuple[dict, Artifact]]) -> dict:
    rows = [row for row, _ in scored]
    seconds = sum(item.facts["seconds"] for _, item in scored)
    total = sum(row["scored"] for row in rows)
    paths = [str(store.fetch(row["scores_key"])) for row in rows]
    exact = _exact(paths) if paths else {"mean_reward": None, "problems": []}
    pairs, quarantined = sum(row["pairs"] for row in rows), sum(row["quarantined"] for row in rows)
    if pairs != total + quarantined:
        exact["problems"].append(f"{pairs} pairs are not {total} scored + {quarantined} quarantined")
    return {
        "model_version": model.facts["model_version"],
        "shards": len(rows),
        "pairs": pairs,
        "scored": total,
        "quarantined": quarantined,
        "device": scored[0][1].facts["device"] if scored else None,
        "pairs_per_second": round(total / seconds, 1) if seconds else None,
        **exact,
    }


def _exact(paths: list[str]) -> dict:
    """Exact SQL over every score of the batch."""
    with duckdb.connect() as connection:
        (row,) = connection.sql(
            """
            select avg(reward), count(*) - count(distinct (shard, key, caption_index)),
                   count(*) filter (not isfinite(reward))
            from read_parquet(?)
            """,
            params=[paths],
        ).fetchall()
    mean, twice, broken = row
    problems = [f"{twice} occurrences scored twice"] if twice else []
    problems += [f"{broken} rewards are not finite"] if broken else []
    return {"mean_reward": None if mean is None else round(mean, 6), "problems": problems}
