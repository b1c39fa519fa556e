"""The one partitions definition: a partition is a batch of shards, never one shard."""

import warnings

import dagster as dg

# Partitioned asset checks are in preview in this Dagster release; one pinned release is what we rely on.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

CRAWL_BATCHES = dg.DynamicPartitionsDefinition(name="crawl_batch")

# The reward model's tokenizer and label-free pre-training use this batch alone: a new batch must not
# make the model look out of date.
FIRST_BATCH = "batch-00001"
