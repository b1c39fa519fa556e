"""The code location: every asset, check, job, sensor and resource, assembled in one place.

The only module, with the command line, that imports upward. `build_defs` takes overrides, so that a
test can assemble the same graph over other folders.
"""

from typing import Any

import dagster as dg

from assets import (
    caption_signals,
    cascade_plan,
    coco_hf_annotations,
    duplicate_groups,
    eval_report,
    external,
    filtered_dataset,
    promoted_model,
    raw_crawl,
    reward_model,
    score_ledger,
    scored_shards,
    semantic_clusters,
    shadow_report,
)
from assets.checks.coco_hf_annotations import judgements
from assets.checks.eval_report import report_is_sound
from assets.checks.reward_model import rewards_compare_across_images, would_pass_the_gate
from compalign_dagster.settings import Settings, load
from resources.accelerator import Accelerator
from resources.storage import Storage
from sensors.arrivals import crawl_arrivals
from sensors.automation import automated, automation
from sensors.jobs import JOBS
from sensors.takedowns import takedowns

ASSETS: list[dg.AssetsDefinition | dg.AssetSpec] = [
    *external.EXTERNAL_ASSETS,
    raw_crawl.raw_crawl,
    caption_signals.caption_signals_of_batch,
    coco_hf_annotations.coco_hf_annotations,
    reward_model.reward_model,
    promoted_model.promoted_model,
    scored_shards.scored_shards,
    score_ledger.score_ledger,
    duplicate_groups.duplicate_groups,
    semantic_clusters.semantic_clusters,
    filtered_dataset.filtered_dataset,
    eval_report.eval_report,
    shadow_report.shadow_report,
    cascade_plan.cascade_plan,
]


def build_defs(*, settings: Settings | None = None, resources: dict[str, Any] | None = None) -> dg.Definitions:
    """The definitions under these settings, with some resources replaced."""
    settings = settings or load()
    return dg.Definitions(
        assets=automated(ASSETS, settings),
        asset_checks=[judgements, would_pass_the_gate, rewards_compare_across_images, report_is_sound],
        jobs=JOBS,
        sensors=[crawl_arrivals, automation, takedowns],
        resources={
            "settings": settings,
            "storage": Storage.from_settings(settings),
            "accelerator": Accelerator.from_settings(settings),
            **(resources or {}),
        },
        # Steps of one run share a process: the work is inside the assets, and heavy imports are paid once.
        executor=dg.in_process_executor,
    )


defs = build_defs()
