"""The one partitions definition: a partition is a batch of shards, never one shard."""

import dagster as dg

CRAWL_BATCHES = dg.DynamicPartitionsDefinition(name="crawl_batch")

# The reward model's tokenizer and label-free pre-training use this batch alone: a new batch must not
# make the model look out of date.
FIRST_BATCH = "batch-00001"
