"""Asset keys and groups, so that checks, sensors and jobs name assets without importing them."""

import dagster as dg

LANDED_SHARDS = dg.AssetKey("landed_shards")
LABEL_EXPORTS = dg.AssetKey("label_exports")
EVALUATION_SHARDS = dg.AssetKey("evaluation_shards")
RAW_CRAWL = dg.AssetKey("raw_crawl")
COCO_HF_ANNOTATIONS = dg.AssetKey("coco_hf_annotations")
REWARD_MODEL = dg.AssetKey("reward_model")
PROMOTED_MODEL = dg.AssetKey("promoted_model")
SCORED_SHARDS = dg.AssetKey("scored_shards")
SCORE_LEDGER = dg.AssetKey("score_ledger")
CAPTION_SIGNALS = dg.AssetKey("caption_signals")
DUPLICATE_GROUPS = dg.AssetKey("duplicate_groups")
SEMANTIC_CLUSTERS = dg.AssetKey("semantic_clusters")
FILTERED_DATASET = dg.AssetKey("filtered_dataset")
EVAL_REPORT = dg.AssetKey("eval_report")
SHADOW_REPORT = dg.AssetKey("shadow_report")
CASCADE_PLAN = dg.AssetKey("cascade_plan")

CRAWL_GROUP = "crawl"
REFEREE_GROUP = "referee"
DATASET_GROUP = "dataset"

OWNERS = ["team:data-curation"]
