"""A code location without sensors: scoring alone, and two steps that share its pool, each in a process of its own."""

import time

import dagster as dg

from assets import keys
from assets.needs import SCORING
from assets.partitions import CRAWL_BATCHES
from compalign_dagster.definitions import build_defs


def _step(name: str) -> dg.AssetsDefinition:
    @dg.asset(name=name, pool=SCORING.dagster_pool())
    def step() -> None:
        time.sleep(3)

    return step


def _alone() -> dg.Definitions:
    project, selected = build_defs(), dg.AssetSelection.assets
    return dg.Definitions(
        assets=[*(project.assets or []), _step("one"), _step("other")],
        jobs=[
            dg.define_asset_job("score", selection=selected(keys.SCORED_SHARDS), partitions_def=CRAWL_BATCHES),
            dg.define_asset_job("both", selection=selected("one", "other"), executor_def=dg.multiprocess_executor),
        ],
        resources=project.resources,
        executor=project.executor,
    )


defs = _alone()
