"""`scored_shards`: one reward per pair of a batch, with the baselines evaluation needs."""

import logging
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import duckdb

from assets import keys
from assets.checks import scored_shards as checks
from assets.needs import SCORING
from assets.partitions import CRAWL_BATCHES
from assets.progress import Progress, logged, observed
from assets.reporting import claim, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, indexed_shards
from compalign_dagster.reward.promoted import promoted
from compalign_dagster.scoring import tables
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.speed import speed
from compalign_dagster.scoring.tables import CODE_VERSION
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

if TYPE_CHECKING:
    from compalign_dagster.scoring.work import ShardWork

KIND = keys.SCORED_SHARDS.to_user_string()
_SHOWN = ("devices", "workers", "pairs_per_second", "device_seconds_per_million_pairs", "cost_per_million_pairs",
          "cpu_seconds_per_second", "gpu_utilisation", "halved")  # fmt: skip

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

    Published shard by shard: a crash repeats at most the shard that each worker was at.
    """
    pool = SCORING.dagster_pool()
    progress = observed(context, engine=accelerator.engine, pool=pool)
    artifact, reused = score_batch(storage, accelerator, context.partition_key, progress)
    facts, fast = artifact.facts, artifact.facts.get("speed", {})
    limit = context.instance.event_log_storage.get_concurrency_info(pool).limit if pool else None
    shown = {
        **{name: facts[name] for name in ("model_version", "shards", "pairs", "scored", "quarantined", "mean_reward")},
        "engine": fast.get("engine"),
        "pool": pool,
        "pool_limit": limit,
        **{name: fast.get(name) for name in _SHOWN},
    }
    stages = {name: f"{share:.0%}" for name, share in fast.get("stages", {}).items()}
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["scored"],
        schema=tables.SCORES,
        metadata={name: value for name, value in shown.items() if value is not None}
        | ({"bottleneck": dg.MetadataValue.json(stages)} if stages else {}),
        checks=[
            claim("every_pair_has_one_finite_reward_or_a_reason", facts["problems"]),
            checks.scores(storage, artifact),
        ],
    )


def score_batch(
    storage: Storage, accelerator: Accelerator, batch: str, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """The published scores of a batch's live shards by the promoted model.

    Raises `InputError`, before anything else is looked at, for a device or a precision that is not there.
    """
    config = accelerator.scoring_config()
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
        scored, fast = _score_shards(storage, accelerator, config, model, shards, progress or logged(KIND))
        with tempfile.TemporaryDirectory() as folder:
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
                facts={**_facts(store, model, [row for row, _ in scored]), "speed": fast},
                partition=batch,
            )

    return latest.reuse_or_make(store, KIND, key, make, batch)


def _score_shards(
    storage: Storage,
    accelerator: Accelerator,
    config: ScoringConfig,
    model: Artifact,
    shards: list[IndexedShard],
    progress: Progress,
) -> tuple[list[tuple[dict, Artifact]], dict[str, Any]]:
    """The ledger row and the artifact of each shard, sorted by name, and how fast what was not there was scored."""
    from compalign_dagster.scoring.where import score_works
    from compalign_dagster.scoring.work import Places, ShardWork

    places, where, started = Places(storage.store, storage.landing), accelerator.where(), time.monotonic()
    works = [ShardWork.of(item, places, model, accelerator.changes_bytes()) for item in shards]
    indexed = {work.key: shard for work, shard in zip(works, shards, strict=True)}
    scored, new = [], []
    with closing(score_works(works, config, where, places=places, progress=progress)) as found:  # its workers end here
        for work, artifact, reused in found:
            shard = indexed[work.key]
            scored.append((_row(shard, work, model, artifact), artifact))
            if not reused:
                new.append(artifact.facts)
                log.info("scored_shards %s: %d of %d shards, %s", shard.batch, len(scored), len(shards), shard.shard)
    fast = speed(new, time.monotonic() - started, accelerator.device_hour_cost)
    return sorted(scored, key=lambda item: item[0]["shard"]), {"engine": where.engine, **fast} if fast else {}


def _row(shard: IndexedShard, work: "ShardWork", model: Artifact, artifact: Artifact) -> dict[str, Any]:
    return {
        "shard": shard.shard,
        "batch": shard.batch,
        "model_version": model.facts["model_version"],
        "scores_key": artifact.file_key("scores.parquet"),
        "work_key": work.key,
        "data_version": artifact.data_version,
        "pairs_key": shard.pairs_key,
        "index_version": shard.index_version,
        "pairs": shard.pairs,
        "scored": artifact.facts["scored"],
        "quarantined": artifact.facts["quarantined"],
    }


def _facts(store: Store, model: Artifact, rows: list[dict]) -> dict[str, Any]:
    """What the batch's manifest says of its scores; the same whoever made them, and how."""
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
