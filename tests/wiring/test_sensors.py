"""The arrival sensor and `land_batch` against a Dagster instance."""

import os
import time
from dataclasses import replace

import dagster as dg
import pytest

from compalign_dagster.crawl.batches import read_log
from compalign_dagster.definitions import build_defs
from compalign_dagster.errors import InputError
from sensors.arrivals import crawl_arrivals, rules
from sensors.landing import unregistered
from tests.support.pipeline import Pipeline, failures, small_pipeline


@pytest.fixture
def landed(settings) -> Pipeline:
    return small_pipeline(settings, pairs=80, judged=4)


def _tick(pipeline: Pipeline, cursor: str | None = None) -> dg.SensorResult:
    from resources.storage import Storage

    resources = {"storage": Storage.from_settings(pipeline.settings), "settings": pipeline.settings}
    with dg.build_sensor_context(instance=pipeline.instance, cursor=cursor, resources=resources) as context:
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
    assert not _tick(landed, cursor=None).asset_events
    assert len(read_log(landed.store)) == 1


def test_a_tick_with_nothing_to_do_says_so_and_hands_its_cursor_on(landed):
    _apply(landed, _tick(landed))
    quiet = _tick(landed)
    assert "nothing new" in quiet.skip_reason.skip_message
    assert not quiet.dynamic_partitions_requests
    assert '"version":1' in quiet.cursor


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


def test_batches_beyond_what_a_tick_may_register_follow_in_the_next_ones_even_when_one_is_killed(landed):
    few = replace_settings(landed, batch_max_shards=1, arrival_tick_batches=1)
    total = len(list((landed.settings.home / "landing").rglob("*.tar")))
    few.must("land_batch")
    landed.instance.delete_dynamic_partition("crawl_batch", "batch-00001")
    (landed.settings.home / "landing" / "sample" / "90000.tar").write_bytes(b"another")
    first = _tick(few)
    assert [event.partition for event in first.asset_events] == ["batch-00001"]
    assert [event.partition for event in _tick(few).asset_events] == ["batch-00001"]
    _apply(few, first)
    _apply(few, _tick(few))
    assert not unregistered(landed.instance, read_log(landed.store))
    assert len(landed.instance.get_dynamic_partitions("crawl_batch")) == len(read_log(landed.store)) <= total + 1


def test_a_shard_that_is_still_being_written_waits(landed):
    waiting = replace_settings(landed, settle_seconds=3600)
    assert not _tick(waiting).asset_events
    old = time.time() - 7200
    for path in (landed.settings.home / "landing").rglob("*.tar"):
        os.utime(path, (old, old))
    assert _tick(waiting).asset_events


def test_a_landing_folder_that_vanished_fails_the_tick_and_is_not_a_mass_removal(landed):
    first = _tick(landed)
    _apply(landed, first)
    (landed.settings.home / "landing").rename(landed.settings.home / "gone")
    with pytest.raises(InputError, match="landing"):
        _tick(landed, first.cursor)
    assert len(read_log(landed.store)) == 1


def test_a_refused_corpus_fails_land_batch_and_holds_back_no_other(landed):
    landed.must("land_batch")
    landing = landed.settings.home / "landing"
    (landing / "sample").rename(landing / "renamed")
    result = landed.run("land_batch")
    assert not result.success
    assert "remove_corpora" in failures(result)[0]
    assert landed.instance.get_dynamic_partitions("crawl_batch") == ["batch-00001", "batch-00002"]
    assert not read_log(landed.store)[-1].removed


def test_a_corpus_is_removed_on_purpose_by_a_configured_land_batch(landed):
    landed.must("land_batch")
    landing = landed.settings.home / "landing"
    (landing / "sample").rename(landed.settings.home / "elsewhere")
    config = {"ops": {"seal_landed_shards": {"config": {"remove_corpora": ["sample"]}}}}
    job = landed.defs.resolve_job_def("land_batch")
    assert job.execute_in_process(instance=landed.instance, run_config=config).success
    assert len(read_log(landed.store)[-1].removed) == len(read_log(landed.store)[0].added)


def test_every_setting_of_arrivals_reaches_the_rules(landed):
    changed = replace_settings(
        landed, batch_max_shards=7, batch_max_pairs=8, batch_wait_minutes=9.0, settle_seconds=10.0,
        landing_complete="stats", arrival_patience_minutes=11.0, arrival_sweep_minutes=12.0, arrival_tick_seconds=13.0,
        arrival_tick_batches=14,
    )  # fmt: skip
    found = rules(changed.settings)
    assert (found.size.shards, found.size.pairs, found.wait, found.batches) == (7, 8, 540, 14)
    assert (found.complete.settle_seconds, found.complete.mark) == (10, "stats")
    assert (found.patience, found.sweep, found.budget) == (660, 720, 13)


def replace_settings(pipeline: Pipeline, **changes: object) -> Pipeline:
    changed = pipeline.settings.model_copy(update=changes)
    return replace(pipeline, settings=changed, defs=build_defs(settings=changed))
