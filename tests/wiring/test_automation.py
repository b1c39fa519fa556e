"""What automation requests, tick by tick, with real materialisations in between."""

import dagster as dg
import pytest

from assets import keys
from tests.support.pipeline import BATCH, Pipeline, small_pipeline

pytestmark = pytest.mark.slow


class Ticks:
    """Evaluates the automation conditions of a pipeline again and again, as its sensor does."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self._cursor = pipeline, None

    def tick(self) -> set[tuple[str, str | None]]:
        result = dg.evaluate_automation_conditions(
            defs=self.pipeline.defs, instance=self.pipeline.instance, cursor=self._cursor
        )
        self._cursor = result.cursor
        return {
            (key.to_user_string(), partition)
            for key in keys_of(result)
            for partition in result.get_requested_partitions(key)
        }


def keys_of(result) -> list[dg.AssetKey]:
    return [keys.RAW_CRAWL, keys.SCORED_SHARDS, keys.SCORE_LEDGER, keys.FILTERED_DATASET]


@pytest.fixture(scope="module")
def ticks(tmp_path_factory) -> Ticks:
    from compalign_dagster.settings import load

    settings = load(
        home=tmp_path_factory.mktemp("home"), settle_seconds=0, pretrain_steps=2, train_steps=4,
        batch_images=8, min_cross_image_auc=0.5,
    )  # fmt: skip
    return Ticks(small_pipeline(settings, pairs=80, judged=40))


def test_a_landed_batch_is_indexed_scored_and_filtered_in_turn_and_then_all_is_quiet(ticks):
    pipeline = ticks.pipeline
    assert ticks.tick() == set()
    pipeline.must("land_batch")
    assert ("raw_crawl", BATCH) in ticks.tick()
    pipeline.learn()
    requested = ticks.tick()
    assert ("scored_shards", BATCH) in requested
    pipeline.must("score_batch", BATCH)
    assert ("score_ledger", None) in ticks.tick()
    pipeline.must("refilter")
    ticks.tick()
    assert ticks.tick() == set()
    assert ticks.tick() == set()


def test_a_new_promotion_requests_no_scoring(ticks):
    pipeline = ticks.pipeline
    pipeline.instance.report_runless_asset_event(
        dg.AssetMaterialization(keys.PROMOTED_MODEL, tags={"dagster/data_version": "another"})
    )
    assert ticks.tick() == set()


def test_a_second_batch_is_scored_alone(ticks):
    from compalign_dagster.samples.crawl import write_sample_crawl

    pipeline = ticks.pipeline
    extra = pipeline.settings.home / "extra"
    write_sample_crawl(extra, seed=5, pairs=40, judged_images=4, evaluation_pairs=4, shard_pairs=40)
    (source,) = (extra / "landing" / "sample").glob("*.tar")
    source.rename(pipeline.settings.home / "landing" / "sample" / "90000.tar")
    pipeline.must("land_batch")
    # One run for both: a blocking check of the first stops the second inside it.
    assert ticks.tick() == {("raw_crawl", "batch-00002"), ("scored_shards", "batch-00002")}
    pipeline.must("score_batch", "batch-00002")
    requested = ticks.tick()
    assert ("score_ledger", None) in requested
    assert all(partition is None for _, partition in requested)


def test_the_same_bytes_again_keep_everything_quiet(ticks):
    pipeline = ticks.pipeline
    pipeline.must("refilter")
    ticks.tick()
    pipeline.must("score_batch", BATCH)
    assert ticks.tick() == set()
