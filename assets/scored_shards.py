"""`scored_shards`: one reward per pair of a batch, with the baselines evaluation needs."""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa

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
from compalign_dagster.scoring import in_force, tables
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.speed import speed
from compalign_dagster.scoring.tables import CODE_VERSION
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

KIND = keys.SCORED_SHARDS.to_user_string()
BATCH_VERSION = 4  # of a batch's table; CODE_VERSION is that of the scores of a shard
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
            description="Exact SQL over all rows: pairs = scored + rejected by a cascade + quarantined, no occurrence "
            "twice, no NaN.",
        ),
        *checks.SPECS,
    ],
)
def scored_shards(
    context: dg.AssetExecutionContext, storage: Storage, accelerator: Accelerator
) -> dg.MaterializeResult:
    """Rewards of the promoted model, one table per shard; image-text cosine and ITM beside them.

    Where a cascade is in force, pairs that its cheap model turns down have none (docs/scoring.md).
    Published shard by shard: a crash repeats at most the shard that each worker was at.
    """
    pool = SCORING.dagster_pool()
    progress = observed(context, engine=accelerator.engine, pool=pool)
    artifact, reused, cascade = score_batch(storage, accelerator, context.partition_key, progress)
    facts, fast = artifact.facts, artifact.facts.get("speed", {})
    limit = context.instance.event_log_storage.get_concurrency_info(pool).limit if pool else None
    shown = {
        **{name: facts[name] for name in ("model_version", "shards", "pairs", "scored", "quarantined", "mean_reward")},
        **_cascade_of(facts, cascade),
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
) -> tuple[Artifact, bool, str]:
    """The published scores of a batch's live shards by the promoted model, whether they were there, and which cascade.

    What was scored whole stays in use under a cascade: its rewards cost nothing more. Raises `InputError`, before
    anything else is looked at, for a device or a precision that is not there.
    """
    config = accelerator.scoring_config()
    store = storage.store
    raw = latest.require(store, keys.RAW_CRAWL.to_user_string(), batch)
    model = promoted(store)
    cascade, said, bound = in_force.applied(store, model.facts["model_version"])
    changes_bytes = {**accelerator.changes_bytes(), **(cascade.as_config() if cascade else {})}
    shards = indexed_shards(store, batch)

    def key_of(config: Mapping[str, Any]) -> str:
        of = [CODE_VERSION, model.facts["model_version"], [[shard.shard, shard.index_version] for shard in shards]]
        return work_key(KIND, code_version=BATCH_VERSION, inputs=of, config=config)

    if cascade and artifacts.find(store, KIND, key_of(in_force.without(changes_bytes)), batch):
        cascade, said = None, f"{said} is not applied: every pair of this batch was scored before"
        changes_bytes = in_force.without(changes_bytes)
    key = key_of(changes_bytes)

    def make() -> Artifact:
        scored, fast = _score_shards(storage, accelerator, config, changes_bytes, model, shards, progress)
        with tempfile.TemporaryDirectory() as folder:
            found = {"shards": parquet.from_rows([row for row, _ in scored], tables.LEDGER)}
            if cascade:
                of = [item for _, item in scored if "audited.parquet" in item.names()]
                found["audited"] = pa.concat_tables(
                    [tables.AUDITED.empty_table(), *(parquet.read(item.fetch("audited.parquet")) for item in of)]
                )
            return artifacts.publish(
                store,
                KIND,
                key,
                {
                    f"{name}.parquet": parquet.write(table, Path(folder, f"{name}.parquet"))
                    for name, table in found.items()
                },
                code_version=BATCH_VERSION,
                inputs=[raw.as_input(), model.as_input(), *(item.as_input() for _, item in scored)],
                config=changes_bytes,
                facts={**_facts(store, model, scored), **({"bound": bound} if cascade else {}), "speed": fast},
                partition=batch,
            )

    return *latest.reuse_or_make(store, KIND, key, make, batch), said


def _score_shards(
    storage: Storage,
    accelerator: Accelerator,
    config: ScoringConfig,
    changes_bytes: dict[str, Any],
    model: Artifact,
    shards: list[IndexedShard],
    progress: Progress | None,
) -> tuple[list[tuple[dict, Artifact]], dict[str, Any]]:
    """The ledger row and the artifact of each shard, sorted by name, and how fast what was not there was scored."""
    from compalign_dagster.scoring.where import score_works
    from compalign_dagster.scoring.work import Places, ShardWork

    places, where, started = Places(storage.store, storage.landing), accelerator.where(), time.monotonic()
    works = [ShardWork.of(item, places, model, changes_bytes) for item in shards]
    indexed = {work.key: shard for work, shard in zip(works, shards, strict=True)}
    scored, new, progress = [], [], progress or logged(KIND)
    with closing(score_works(works, config, where, places=places, progress=progress)) as found:  # its workers end here
        for work, artifact, reused in found:
            shard = indexed[work.key]
            scored.append((_row(shard, model, artifact), artifact))
            if not reused:
                new.append(artifact.facts)
                # Not at INFO: each would be an event of the run beside the engine's line for the shard.
                log.debug("scored_shards %s: %d of %d shards, %s", shard.batch, len(scored), len(shards), shard.shard)
    fast = speed(new, time.monotonic() - started, accelerator.device_hour_cost)
    return sorted(scored, key=lambda item: item[0]["shard"]), {"engine": where.engine, **fast} if fast else {}


def _row(shard: IndexedShard, model: Artifact, artifact: Artifact) -> dict[str, Any]:
    return {
        "shard": shard.shard,
        "batch": shard.batch,
        "model_version": model.facts["model_version"],
        "scores_key": artifact.file_key("scores.parquet"),
        "work_key": artifact.work_key,
        "data_version": artifact.data_version,
        "pairs_key": shard.pairs_key,
        "index_version": shard.index_version,
        "pairs": shard.pairs,
        "scored": artifact.facts["scored"],
        "quarantined": artifact.facts["quarantined"],
        "rejected": artifact.facts.get("rejected", 0),
        "rejected_key": artifact.file_key("rejected.parquet") if "rejected.parquet" in artifact.names() else None,
    }


def _facts(store: Store, model: Artifact, scored: list[tuple[dict, Artifact]]) -> dict[str, Any]:
    """What the batch's manifest says of its scores; the same whoever made them, and how."""
    rows = [row for row, _ in scored]
    counts = {name: sum(row[name] for row in rows) for name in ("pairs", "scored", "quarantined", "rejected")}
    return {
        "model_version": model.facts["model_version"],
        "shards": len(rows),
        **counts,
        "audited": sum(item.facts.get("audited", 0) for _, item in scored),
        **exact(store, rows, counts),
    }


def _cascade_of(facts: Mapping[str, Any], said: str) -> dict[str, Any]:
    """Which cascade this run uses, or why none, and what it did to the batch."""
    turned_down = facts["rejected"] + facts["audited"]
    if not turned_down:
        return {"cascade": said}
    return {
        "cascade": said,
        "cascade_passes": round(1 - turned_down / facts["pairs"], 4),
        "cascade_rejected": facts["rejected"],
        "cascade_audited": facts["audited"],
    }


def exact(store: Store, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> dict[str, Any]:
    """The mean reward of a batch, and what exact SQL over every row of its tables finds wrong with them.

    `rows` are LEDGER rows, `counts` their sums of `pairs`, `scored`, `rejected` and `quarantined`.
    """
    scores = [str(store.fetch(row["scores_key"])) for row in rows]
    rejected = [str(store.fetch(row["rejected_key"])) for row in rows if row["rejected_key"]]
    if not scores:
        return {"mean_reward": None, "problems": []}
    with duckdb.connect() as connection:
        (mean, scored, broken) = connection.execute(
            "select avg(reward), count(*), count(*) filter (not isfinite(reward)) from read_parquet(?)", [scores]
        ).fetchall()[0]
        (found, different) = connection.execute(
            "select count(*), count(distinct (shard, key, caption_index)) from read_parquet(?, union_by_name = true)",
            [scores + rejected],
        ).fetchall()[0]
    wrong = {
        f"{found - different} occurrences scored or rejected twice": found != different,
        f"{broken} rewards are not finite": broken,
        f"{scored} scores and {found - scored} rejected pairs were found, not {counts['scored']} and "
        f"{counts['rejected']}": (scored, found - scored) != (counts["scored"], counts["rejected"]),
        f"{counts['pairs']} pairs are not {counts['scored']} scored + {counts['rejected']} rejected + "
        f"{counts['quarantined']} quarantined": counts["pairs"]
        != counts["scored"] + counts["rejected"] + counts["quarantined"],
    }
    problems = [text for text, holds in wrong.items() if holds]
    return {"mean_reward": None if mean is None else round(mean, 6), "problems": problems}
