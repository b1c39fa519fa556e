"""The same bytes delivered again cost one more look at the shard and nothing behind it."""

import os

import pytest

from compalign_dagster import latest
from compalign_dagster.crawl.batches import read_log
from compalign_dagster.crawl.live import earliest_indexed, indexed_shards
from compalign_dagster.selection.version import Version
from compalign_dagster.settings import load
from tests.support.pipeline import Pipeline, small_pipeline

pytestmark = pytest.mark.slow


def scored(pipeline: Pipeline) -> set[str]:
    """Every object that scoring of shards has published."""
    return {item.key for item in pipeline.store.list("scored_shards_shards/")}


def kept_pairs(pipeline: Pipeline) -> set[tuple]:
    """Every kept occurrence with its reward, whichever batch brought it."""
    version = Version.open(latest.require(pipeline.store, "filtered_dataset"))
    columns = ["pair_id", "shard", "key", "caption_index", "reward"]
    return {row for batch in version.batches() for row in version.kept(batch, columns).iter_rows()}


def test_a_touched_shard_is_indexed_again_and_not_scored_and_other_bytes_are(learned):
    learned.learn()
    learned.score_and_filter()
    before, kept = scored(learned), kept_pairs(learned)
    assert before
    assert kept
    shard = min((learned.settings.home / "landing").rglob("*.tar"))
    os.utime(shard, (1_000_000, 1_000_000))
    learned.must("land_batch")
    assert [len(batch.superseded) for batch in read_log(learned.store)] == [0, 1]
    learned.score_and_filter("batch-00002")
    assert latest.require(learned.store, "raw_crawl", "batch-00002").facts["shards"] == 1
    assert latest.require(learned.store, "scored_shards", "batch-00002").facts["shards"] == 1
    assert scored(learned) == before
    assert kept_pairs(learned) == kept

    shard.write_bytes(max((learned.settings.home / "landing").rglob("*.tar")).read_bytes())
    learned.must("land_batch")
    learned.score_and_filter("batch-00003")
    assert len(scored(learned)) > len(before), "the planted difference is seen"


def test_a_model_can_be_trained_again_after_the_whole_first_batch_was_delivered_anew(tmp_path):
    """The new batch holds all that is live: its pairs are what the model sees of the crawl."""
    settings = load(home=tmp_path, settle_seconds=0, pretrain_steps=2, train_steps=2, batch_images=8)
    pipeline = small_pipeline(settings, pairs=40, judged=60)
    for job, partition in (("land_batch", None), ("index_batch", "batch-00001"), ("learn_reward", None)):
        pipeline.must(job, partition)
    first = latest.require(pipeline.store, "reward_model")
    for at, shard in enumerate(sorted((tmp_path / "landing").rglob("*.tar"))):
        os.utime(shard, (1_000_000 + at, 1_000_000 + at))
    pipeline.must("land_batch")
    assert not indexed_shards(pipeline.store, "batch-00001")
    pipeline.must("index_batch", "batch-00002")
    pipeline.must("learn_reward")
    assert latest.require(pipeline.store, "reward_model").data_version == first.data_version, "equal pairs, equal model"
    assert earliest_indexed(pipeline.store)[0].batch == "batch-00002"
