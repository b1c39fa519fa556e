"""The pool of the scoring step, with a real daemon: one step at a time within a run and across runs."""

import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path

import dagster as dg
import pytest

from tests.support.processes import BIN, ROOT, environment, stop_group
from tests.support.scoring import prepare

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]

_DONE_SECONDS = 400
BATCHES = ("batch-00001", "batch-00002")
LOCATION = ("-m", "tests.support.pooled_steps", "-d", str(ROOT))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two batches to score and an instance as deployed on one machine."""
    home = prepare(tmp_path_factory.mktemp("pools") / "home", shards=2, pairs=12, batch_shards=1)
    (home / "dagster").mkdir()
    shutil.copyfile(ROOT / "deploy" / "local" / "dagster.yaml", home / "dagster" / "dagster.yaml")
    with instance_of(home) as instance:
        instance.add_dynamic_partitions("crawl_batch", list(BATCHES))
    return home


@pytest.fixture(scope="module")
def env(home) -> dict[str, str]:
    return environment(home, device="cpu") | {"DAGSTER_HOME": str(home / "dagster"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def daemon(home, env):
    """A daemon that finds both batches queued, so that it starts them together."""
    for batch in BATCHES:
        launch(env, "score", **{"dagster/partition": batch})
    with (home / "daemon.log").open("wb") as log:
        command = [str(BIN / "dagster-daemon"), "run", *LOCATION]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            stop_group(process)


def instance_of(home: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(home / "dagster"))


def launch(env: dict[str, str], job: str, **tags: str) -> None:
    command = [str(BIN / "dagster"), "job", "launch", *LOCATION, "-j", job, "--tags", json.dumps(tags)]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=300)


def limit(env: dict[str, str], number: int) -> None:
    command = [str(BIN / "dagster"), "instance", "concurrency", "set", "scoring", str(number)]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=300)


def times(home: Path, job: str, steps: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """When each run of a job, and each step of them, began and ended, once so many steps have succeeded."""
    end = time.monotonic() + _DONE_SECONDS
    with instance_of(home) as instance:
        while time.monotonic() < end:
            runs = instance.get_run_records(filters=dg.RunsFilter(job_name=job))
            failed = [run.dagster_run.run_id for run in runs if run.dagster_run.is_failure_or_canceled]
            assert not failed, instance.all_logs(failed[0])
            stats = [step for run in runs for step in instance.get_run_step_stats(run.dagster_run.run_id)]
            if len(stats) == steps and all(run.dagster_run.is_success for run in runs):
                return (
                    sorted((run.start_time, run.end_time) for run in runs),
                    sorted((step.start_time, step.end_time) for step in stats),
                )
            time.sleep(2)
    raise AssertionError((home / "daemon.log").read_text()[-4000:])


def overlap(spans: list[tuple[float, float]]) -> bool:
    return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


def test_two_runs_at_once_never_score_at_the_same_time(home, daemon):
    runs, steps = times(home, "score", 2)
    assert overlap(runs), "otherwise nothing was shown"
    assert not overlap(steps), steps
    with instance_of(home) as instance:
        for batch in BATCHES:
            wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("scored_shards"), asset_partitions=[batch])
            (record,) = instance.fetch_materializations(wanted, limit=1).records
            metadata = record.asset_materialization.metadata
            assert metadata["pool"].value == "scoring"
            assert metadata["pool_limit"].value == 1
            assert (metadata["engine"].value, metadata["devices"].value) == ("here", "cpu")


def test_two_steps_of_one_run_never_hold_the_pool_together_and_do_when_it_has_room(home, env, daemon):
    launch(env, "both")
    assert not overlap(times(home, "both", 2)[1])
    limit(env, 2)  # the planted bug: a pool that lets two in
    launch(env, "both")
    assert overlap(times(home, "both", 4)[1][2:]), "without the limit they would have run together"
