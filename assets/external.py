"""What the pipeline reads but does not make: landed shards, label exports, evaluation shards."""

import dagster as dg

from assets import keys
from assets.partitions import CRAWL_BATCHES

landed_shards = dg.AssetSpec(
    keys.LANDED_SHARDS,
    description="Crawl shards as img2dataset wrote them, sealed into batches by the batch log. "
    "A materialisation here means: the log now names these shards.",
    partitions_def=CRAWL_BATCHES,
    group_name=keys.CRAWL_GROUP,
    kinds={"webdataset"},
    owners=keys.OWNERS,
)

label_exports = dg.AssetSpec(
    keys.LABEL_EXPORTS,
    description="Human judgements as JSON lines or Parquet, with shards of the judged images.",
    group_name=keys.REFEREE_GROUP,
    kinds={"json", "webdataset"},
    owners=keys.OWNERS,
)

evaluation_shards = dg.AssetSpec(
    keys.EVALUATION_SHARDS,
    description="Clean held-out pairs for downstream retrieval. Never judged, never trained on.",
    group_name=keys.DATASET_GROUP,
    kinds={"webdataset"},
    owners=keys.OWNERS,
)

EXTERNAL_ASSETS = [landed_shards, label_exports, evaluation_shards]
