"""What Dagster is told when a batch is sealed."""

import dagster as dg

from assets import keys
from assets.partitions import CRAWL_BATCHES
from compalign_dagster.crawl.batches import Batch
from compalign_dagster.versions import digest_json

DATA_VERSION_TAG = "dagster/data_version"


def batch_version(batch: Batch) -> str:
    """The data version of a sealed batch: a digest of the log entry."""
    return digest_json(
        [
            [[item.shard, item.size, item.stamp] for item in (*batch.added, *batch.superseded)],
            list(batch.removed),
        ]
    )


def landed_event(batch: Batch) -> dg.AssetMaterialization:
    """The materialisation of `landed_shards` that a sealed batch is."""
    listed = (*batch.added, *batch.superseded)
    return dg.AssetMaterialization(
        asset_key=keys.LANDED_SHARDS,
        partition=batch.key,
        tags={DATA_VERSION_TAG: batch_version(batch)},
        metadata={
            "shards added": len(batch.added),
            "shards superseded": len(batch.superseded),
            "shards removed": len(batch.removed),
            "bytes": sum(item.size for item in listed),
            "first shards": ", ".join(item.shard for item in listed[:10]),
        },
    )


def registered(instance: dg.DagsterInstance) -> set[str]:
    """Batches that Dagster knows; partitions are added after their event is stored."""
    return set(instance.get_dynamic_partitions(str(CRAWL_BATCHES.name)))


def unregistered(instance: dg.DagsterInstance, log: list[Batch]) -> list[Batch]:
    """Batches of the log that Dagster does not know."""
    known = registered(instance)
    return [batch for batch in log if batch.key not in known]
