import os
import time
from dataclasses import replace

import dagster as dg
import pytest

from compalign_dagster.crawl.batches import read_log
from sensors.arrivals import crawl_arrivals, unregistered
from tests.support.pipeline import Pipeline, small_pipeline


@pytest.fixture
def landed(settings) -> Pipeline:
    return small_pipeline(settings, pairs=80, judged=4)


def _tick(pipeline: Pipeline, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    from resources.storage import Storage

    context = dg.build_sensor_context(
        instance=pipeline.instance,
        cursor=cursor,
        resources={"storage": Storage.from_settings(pipeline.settings), "settings": pipeline.settings},
    )
    return crawl_arrivals(context)


def _apply(pipeline: Pipeline, result: dg.SensorResult) -> None:
    for event in result.asset_events:
        pipeline.instance.report_runless_asset_event(event)
    for request in result.dynamic_partitions_requests:
        pipeline.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))


def test_landed_shards_become_one_batch_and_no_run_is_requested(landed):
    result = _tick(landed)
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    assert [event.partition for event in result.asset_events] == ["batch-00001"]
    assert len(read_log(landed.store)) == 1


def test_an_empty_cursor_registers_nothing_twice(landed):
    _apply(landed, _tick(landed))
    assert isinstance(_tick(landed, cursor=None), dg.SkipReason)
    assert len(read_log(landed.store)) == 1


def test_a_tick_killed_after_sealing_is_finished_by_the_next(landed):
    first = _tick(landed)  # nothing of this result reaches the instance
    again = _tick(landed)
    assert [event.partition for event in again.asset_events] == [event.partition for event in first.asset_events]
    assert again.asset_events[0].tags == first.asset_events[0].tags
    assert len(read_log(landed.store)) == 1


def test_a_tick_killed_between_its_events_and_its_partitions_repeats_the_same_data_version(landed):
    first = _tick(landed)
    landed.instance.report_runless_asset_event(first.asset_events[0])
    again = _tick(landed)
    assert again.asset_events[0].tags == first.asset_events[0].tags
    _apply(landed, again)
    assert not unregistered(landed.instance, read_log(landed.store))


def test_a_shard_that_is_still_being_written_waits(landed):
    waiting = replace_settings(landed, settle_seconds=3600)
    assert isinstance(_tick(waiting), dg.SkipReason)
    old = time.time() - 7200
    for path in (landed.settings.home / "landing").rglob("*.tar"):
        os.utime(path, (old, old))
    assert isinstance(_tick(waiting), dg.SensorResult)


def test_a_landing_folder_that_vanished_is_an_error_and_not_a_mass_removal(landed):
    _apply(landed, _tick(landed))
    (landed.settings.home / "landing").rename(landed.settings.home / "gone")
    with pytest.raises(Exception, match="landing"):
        _tick(landed)
    assert len(read_log(landed.store)) == 1


def replace_settings(pipeline: Pipeline, **changes: object) -> Pipeline:
    return replace(pipeline, settings=pipeline.settings.model_copy(update=changes))
