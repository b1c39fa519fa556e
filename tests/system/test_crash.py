"""kill -9 in the middle of indexing: nothing is lost, at most one shard is done again."""

import os
import signal
import subprocess
import sys
import time

import pytest

from compalign_dagster import latest
from compalign_dagster.settings import load
from compalign_dagster.store import LocalStore
from tests.support.pipeline import BATCH, small_pipeline
from tests.support.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.system]

_INDEX = """
import logging, sys
from pathlib import Path
import dagster as dg
from compalign_dagster.definitions import build_defs
from compalign_dagster.settings import load
settings = load(home=Path(sys.argv[1]), settle_seconds=0)
instance = dg.DagsterInstance.ephemeral()
instance.add_dynamic_partitions("crawl_batch", ["batch-00001"])
build_defs(settings=settings).resolve_job_def("index_batch").execute_in_process(
    instance=instance, partition_key="batch-00001")
"""


def _manifests(home) -> dict[str, int]:
    folder = home / "store" / "raw_crawl_shards"
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_index_run_continues_where_it_was(tmp_path, after):
    pipeline = small_pipeline(load(home=tmp_path / "killed", settle_seconds=0), pairs=600, judged=4)
    pipeline.must("land_batch")
    process = subprocess.Popen(
        [sys.executable, "-c", _INDEX, str(tmp_path / "killed")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while len(_manifests(tmp_path / "killed")) < after:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = _manifests(tmp_path / "killed")
    assert latest.latest(pipeline.store, "raw_crawl", BATCH) is None, "no batch is published by a killed run"
    pipeline.must("index_batch", BATCH)
    assert done.items() <= _manifests(tmp_path / "killed").items(), "what was published is not done again"

    whole = small_pipeline(load(home=tmp_path / "whole", settle_seconds=0), pairs=600, judged=4)
    whole.must("land_batch")
    whole.must("index_batch", BATCH)
    assert _indexes(pipeline.store) == _indexes(whole.store)


def _indexes(store) -> list[tuple[str, str]]:
    from compalign_dagster.crawl.live import indexed_shards

    assert isinstance(store, LocalStore)
    return [(shard.shard, shard.index_version) for shard in indexed_shards(store)]
