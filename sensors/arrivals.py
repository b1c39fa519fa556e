"""The arrival sensor: notices settled shards, seals them into batches, registers the batches.

It starts no runs; automation does. The batch log is the truth and the cursor is only a hint, so an
empty cursor, or a tick killed between its events, its partitions and its cursor, registers nothing
twice: batches the log has and Dagster lacks are registered again with the same data version.
"""

import time

import dagster as dg

from assets import keys
from assets.partitions import CRAWL_BATCHES
from compalign_dagster.crawl.batches import read_log, seal
from compalign_dagster.settings import Settings
from resources.storage import Storage
from sensors.landing import landed_event, unregistered

_INTERVAL_SECONDS = 30


@dg.sensor(
    name="crawl_arrivals",
    asset_selection=dg.AssetSelection.assets(keys.LANDED_SHARDS),
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Seals settled shards of the landing folder into batches and registers them.",
)
def crawl_arrivals(
    context: dg.SensorEvaluationContext, storage: Storage, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult | dg.SkipReason:
    """Seal, then report what Dagster does not know yet."""
    seal(
        storage.store,
        storage.landing,
        max_shards=settings.batch_max_shards,
        settled_seconds=settings.settle_seconds,
        now=time.time(),
    )
    new = unregistered(context.instance, read_log(storage.store))
    if not new:
        return dg.SkipReason(f"no new settled shard in {storage.landing_url}")
    return dg.SensorResult(
        asset_events=[landed_event(batch) for batch in new],
        dynamic_partitions_requests=[CRAWL_BATCHES.build_add_request([batch.key for batch in new])],
        cursor=new[-1].key,
    )
