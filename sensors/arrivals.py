"""The arrival sensor: notices complete shards, seals them into batches, registers the batches.

It starts no runs; automation does. The batch log is the truth and the cursor is only a hint, so an
empty cursor, or a tick killed between its events, its partitions and its cursor, registers nothing
twice: batches the log has and Dagster lacks are registered again with the same data version.
"""

import time

import dagster as dg

from assets import keys
from assets.partitions import CRAWL_BATCHES
from compalign_dagster.crawl.arrivals import tick
from compalign_dagster.crawl.batches import BatchSize
from compalign_dagster.crawl.landed import Complete
from compalign_dagster.crawl.look import Rules
from compalign_dagster.settings import Settings
from resources.storage import Storage
from sensors.landing import landed_event, registered

_INTERVAL_SECONDS = 30


def rules(settings: Settings) -> Rules:
    """What a tick may do under these settings."""
    return Rules(
        size=BatchSize(settings.batch_max_shards, settings.batch_max_pairs),
        wait=settings.batch_wait_minutes * 60,
        complete=Complete(settings.settle_seconds, settings.landing_complete),
        patience=settings.arrival_patience_minutes * 60,
        sweep=settings.arrival_sweep_minutes * 60,
        budget=settings.arrival_tick_seconds,
        batches=settings.arrival_tick_batches,
    )


@dg.sensor(
    name="crawl_arrivals",
    asset_selection=dg.AssetSelection.assets(keys.LANDED_SHARDS),
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Seals complete shards of the landing folder into batches and registers them.",
)
def crawl_arrivals(
    context: dg.SensorEvaluationContext, storage: Storage, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult:
    """Seal what is due, then report what Dagster does not know yet. The message of the tick says what waits."""
    began = time.monotonic()
    ticked = tick(
        storage.store,
        storage.landing,
        context.cursor,
        registered(context.instance),
        rules(settings),
        now=time.time(),
        elapsed=lambda: time.monotonic() - began,
    )
    for warning in ticked.warnings:
        context.log.warning(warning)
    keys_of_new = [batch.key for batch in ticked.register]
    return dg.SensorResult(
        asset_events=[landed_event(batch) for batch in ticked.register],
        dynamic_partitions_requests=[CRAWL_BATCHES.build_add_request(keys_of_new)] if keys_of_new else [],
        cursor=ticked.cursor,
        skip_reason=ticked.message,
    )
