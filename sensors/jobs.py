"""Jobs: the natural units of work, cut at `promoted_model` and at the ledger.

Retraining never re-scores and scoring never re-filters by itself inside one job; people or automation
ask for the next unit.
"""

from typing import Any

import dagster as dg
from pydantic import Field

from assets import keys
from assets.partitions import CRAWL_BATCHES
from compalign_dagster.crawl.batches import read_log, seal
from compalign_dagster.settings import Settings
from resources.storage import Storage
from sensors.landing import landed_event, unregistered


class Landing(dg.Config):
    """Which corpora may disappear."""

    remove_corpora: list[str] = Field(
        default=[],
        description="Corpora (first folders of shards) that were taken out of the landing folder on purpose. "
        "Any other corpus of which nothing lies there counts as a lost mount.",
    )


@dg.op(description="Seal what lies in the landing folder now into batches, and tell Dagster of them.")
def seal_landed_shards(
    context: dg.OpExecutionContext, config: Landing, storage: Storage, settings: dg.ResourceParam[Settings]
) -> None:
    """Seal everything that lies there, however new: the person who starts this says it is complete."""
    try:
        seal(
            storage.store,
            storage.landing,
            max_shards=settings.batch_max_shards,
            max_pairs=settings.batch_max_pairs,
            remove_corpora=config.remove_corpora,
        )
    finally:  # a corpus that was refused holds back only itself
        new = unregistered(context.instance, read_log(storage.store))
        for batch in new:
            context.log_event(landed_event(batch))
        context.instance.add_dynamic_partitions(str(CRAWL_BATCHES.name), [batch.key for batch in new])
        context.log.info(f"{len(new)} batches registered: {', '.join(batch.key for batch in new) or 'nothing new'}")


@dg.job(description="Seal what lies in the landing folder now as a new batch (a partition).")
def land_batch() -> None:
    """One op; needs no partition."""
    seal_landed_shards()


learn_reward = dg.define_asset_job(
    "learn_reward",
    selection=dg.AssetSelection.assets(keys.COCO_HF_ANNOTATIONS, keys.REWARD_MODEL),
    description="Read the label exports and train a reward model. Promotes nothing.",
)
promote_model = dg.define_asset_job(
    "promote_model",
    selection=dg.AssetSelection.assets(keys.PROMOTED_MODEL),
    description="Promote the newest reward model, through the gate; say why in the launchpad. Re-scores nothing.",
)
roll_back_model = dg.define_asset_job(
    "roll_back_model",
    selection=dg.AssetSelection.assets(keys.PROMOTED_MODEL),
    config={"ops": {"promoted_model": {"config": {"roll_back": True, "reason": "rolled back in the launchpad"}}}},
    description="Go back to the model that was promoted before; say why in the launchpad. Re-scores nothing.",
)
shadow_candidate = dg.define_asset_job(
    "shadow_candidate",
    selection=dg.AssetSelection.assets(keys.SHADOW_REPORT),
    description="Before a promotion: score a sample of the crawl with the newest reward model and show what would "
    "enter and leave the dataset, and what a full re-score costs.",
)
plan_cascade = dg.define_asset_job(
    "plan_cascade",
    selection=dg.AssetSelection.assets(keys.CASCADE_PLAN),
    description="Score a sample of the crawl with a cheap model and the promoted one, and plan which pairs may go "
    "without a reward. Changes nothing unless the launchpad says `adopt`.",
)
index_batch = dg.define_asset_job(
    "index_batch",
    selection=dg.AssetSelection.assets(keys.RAW_CRAWL),
    partitions_def=CRAWL_BATCHES,
    description="Index the pairs of a batch.",
)
replay_quarantine = dg.define_asset_job(
    "replay_quarantine",
    selection=dg.AssetSelection.assets(keys.RAW_CRAWL),
    partitions_def=CRAWL_BATCHES,
    config={"ops": {"raw_crawl": {"config": {"replay_quarantine": True}}}},
    description="After a fix or with larger budgets: read only those shards of a batch again of which something was "
    "refused that the fix may recover. A backfill over all partitions replays every batch.",
)
score_batch = dg.define_asset_job(
    "score_batch",
    selection=dg.AssetSelection.assets(keys.RAW_CRAWL, keys.SCORED_SHARDS),
    partitions_def=CRAWL_BATCHES,
    description="Index and score a batch with the promoted model.",
)
refilter = dg.define_asset_job(
    "refilter",
    selection=dg.AssetSelection.assets(keys.SCORE_LEDGER, keys.FILTERED_DATASET),
    description="Fold all scores and select by the policy in force.",
)
evaluate = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.assets(keys.EVAL_REPORT),
    description="Report on the current filtered dataset: agreement with people, downstream retrieval.",
)

JOBS: list[Any] = [
    land_batch,
    index_batch,
    replay_quarantine,
    learn_reward,
    shadow_candidate,
    promote_model,
    roll_back_model,
    plan_cascade,
    score_batch,
    refilter,
    evaluate,
]
