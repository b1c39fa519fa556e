"""A hundred thousand shards at once: several ticks of bounded time and memory, nothing lost, nothing twice."""

import gc
import time
from pathlib import Path

import dagster as dg
import pytest

from assets.partitions import CRAWL_BATCHES
from compalign_dagster.crawl.arrivals import tick
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.crawl.look import Rules
from compalign_dagster.store import LocalStore, Store
from sensors.landing import landed_event, registered
from tests.support.memory import mib
from tests.support.memory_store import MemoryStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("told")]

_SHARDS, _CORPORA = 100_000, 4
_NAMES = [f"corpus-{at % _CORPORA}/{at // _CORPORA:06d}.tar" for at in range(_SHARDS)]
_RULES = Rules(sweep=600.0, budget=20.0, batches=100)
_MOST_SECONDS, _MOST_MIB = 40.0, 400.0  # of a tick, beside other work on a small machine; the limit is 60
_QUIET_SECONDS = 1.5  # of CPU, for a tick that finds nothing new in a log of 1000 batches


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _run(store: Store, landing: Store) -> dg.DagsterInstance:
    """Tick until two ticks in a row register nothing; prints what each cost."""
    instance, cursor, now = dg.DagsterInstance.ephemeral(), None, 1e9
    seconds, idle, quiet = [], 0, 0.0
    gc.collect()
    start = mib("VmRSS")
    _forget_peak()
    while idle < 2:
        now += 30
        began, used = time.monotonic(), time.process_time()
        known = registered(instance)
        ticked = tick(
            store, landing, cursor, known, _RULES, now=now, elapsed=lambda began=began: time.monotonic() - began
        )
        seconds.append(time.monotonic() - began)
        quiet = time.process_time() - used
        new = [batch.key for batch in ticked.register]
        assert len(new) <= _RULES.batches
        assert not known & set(new)
        for batch in ticked.register[:: 1 + len(new) // 3]:  # an event is the daemon's cost; a few prove that they fit
            instance.report_runless_asset_event(landed_event(batch))
        instance.add_dynamic_partitions(str(CRAWL_BATCHES.name), new)
        cursor, idle = ticked.cursor, 0 if new else idle + 1
        assert len(cursor) < 2000
    peak = mib() - start
    busy = seconds[:-2]
    print(
        f"\n{type(landing).__name__}: {len(busy)} ticks of {min(busy):.1f} to {max(busy):.1f} s, "
        f"a quiet one {quiet:.2f} s of CPU, peak {peak:.0f} MiB over the start"
    )
    assert max(seconds) < _MOST_SECONDS
    assert peak < _MOST_MIB
    assert quiet < _QUIET_SECONDS
    return instance


def _check(store: Store, instance: dg.DagsterInstance) -> None:
    log = read_log(store)
    assert sorted(item.shard for batch in log for item in batch.added) == sorted(_NAMES)
    assert not any(batch.superseded or batch.removed for batch in log)
    assert set(live_shards(log)) == set(_NAMES)
    assert sorted(registered(instance)) == [batch.key for batch in log]


def test_in_a_bucket(tmp_path):
    landing = MemoryStore("memory://landing")
    landing.put_many(_NAMES)
    store = LocalStore(tmp_path)
    _check(store, _run(store, landing))


def test_on_a_disk(tmp_path):
    for at in range(_CORPORA):
        (tmp_path / "landing" / f"corpus-{at}").mkdir(parents=True)
    for name in _NAMES:
        (tmp_path / "landing" / name).touch()
    store = LocalStore(tmp_path / "store")
    _check(store, _run(store, LocalStore(tmp_path / "landing")))
