"""Ticks over a thousand batches: what they request, and how long they take."""

import time

import dagster as dg
import pytest

from compalign_dagster.definitions import build_defs
from compalign_dagster.settings import load
from tests.support.ticks import Reports, Ticks

pytestmark = pytest.mark.slow

BATCHES = [f"batch-{number:05d}" for number in range(1, 1001)]
_TICK_SECONDS = 20  # of a sensor's 60, on a machine that runs other tests beside this one


def test_a_thousand_batches_are_requested_once_each_and_a_tick_stays_short(tmp_path, capsys):
    defs = build_defs(settings=load(home=tmp_path, refilter_wait_seconds=60))
    instance = dg.DagsterInstance.ephemeral()
    ticks, runs = Ticks(defs, instance), Reports(defs, instance)
    took: dict[str, float] = {}

    def timed(what: str) -> set:
        started = time.monotonic()
        requested = ticks.tick()
        took[what] = time.monotonic() - started
        return requested

    runs.promote("1")
    timed("first, nothing there")
    runs.land(BATCHES)
    everything = {(asset, batch) for asset in ("raw_crawl", "scored_shards") for batch in BATCHES}
    assert timed("1,000 new batches") == everything
    assert timed("all of them requested") == set()
    runs.do(everything)
    assert {asset for asset, _ in timed("all of them made")} == {"score_ledger", "filtered_dataset"}
    runs.do([("score_ledger", None), ("filtered_dataset", None)])
    timed("ledger and dataset made")
    assert timed("nothing to do") == set()
    runs.land(["batch-01001"])
    assert timed("one batch more") == {("raw_crawl", "batch-01001"), ("scored_shards", "batch-01001")}
    with capsys.disabled():
        print("\nseconds of a tick over 1,000 batches, and bytes of its cursor:")
        for what, seconds in took.items():
            print(f"  {what}: {seconds:.2f} s")
        print(f"  cursor: {len(dg.serialize_value(ticks.cursor)):,} bytes")
    assert max(took.values()) < _TICK_SECONDS
    assert took["nothing to do"] < _TICK_SECONDS / 4
