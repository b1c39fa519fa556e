"""Scoring by several processes: the bytes of one process, whoever is killed, and one publication a shard."""

import logging
import multiprocessing
import os
import shutil
import signal
import threading

import pytest

from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring import devices
from compalign_dagster.scoring.where import Where, score_works
from tests.support.scoring import (
    REFERENCE,
    manifests,
    places_of,
    prepare,
    scored,
    versions,
    works_of,
)
from tests.support.scoring_race import race

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(300)]

SHARDS = 8  # each of two workers is given two at first, so that one that has published is at another


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Shards that take a worker a moment each, and what one process makes of them."""
    home = prepare(tmp_path_factory.mktemp("devices") / "home", shards=SHARDS, pairs=60)
    alone = shutil.copytree(home, home.with_name("alone"))
    reference = versions(scored(alone))
    return home, reference


def _home(crawl, tmp_path):
    """A copy with the same landing folder, whose stamps the index knows."""
    shutil.copytree(crawl[0] / "store", tmp_path / "store")
    (tmp_path / "landing").symlink_to(crawl[0] / "landing")
    return tmp_path


def _kill_the_first_that_publishes(home):
    """Score with two processes, one of which is killed when it has published a shard and begun the next."""
    found, killed = {}, None
    for work, artifact, _ in score_works(works_of(home), REFERENCE, Where("devices", 2)):
        found[work.shard] = artifact
        if killed is None:
            killed = int(artifact.facts["worker"].split()[-1])
            os.kill(killed, signal.SIGKILL)
    return found, killed


def test_two_processes_publish_the_bytes_that_one_does(crawl, tmp_path):
    home = _home(crawl, tmp_path)
    found = scored(home, Where("devices", 2))
    assert versions(found) == crawl[1]
    assert len({artifact.facts["worker"] for artifact in found.values()}) == 2
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_named_and_its_shards_are_scored_by_the_other(crawl, tmp_path, caplog):
    home = _home(crawl, tmp_path)
    with caplog.at_level(logging.WARNING):
        found, killed = _kill_the_first_that_publishes(home)
    assert f"process {killed}) died (SIGKILL); its shards go to another worker: web/" in caplog.text
    assert versions(found) == crawl[1]
    assert len(manifests(home)) == SHARDS


def _stop_the_first_that_publishes(home, found, monkeypatch):
    """Score with two processes; one stands still from when it has published a shard, and that was an hour ago."""
    workers, start, stopped = [], devices._start, None

    def started(*arguments):
        workers.extend(start(*arguments))
        return list(workers)

    monkeypatch.setattr(devices, "_start", started)
    monkeypatch.setattr(devices, "_SECONDS_BETWEEN_LOOKS", 0.2)
    for work, artifact, _ in score_works(works_of(home), REFERENCE, Where("devices", 2, stall_seconds=1800)):
        found[work.shard] = artifact
        if stopped is None:
            process = int(artifact.facts["worker"].split()[-1])
            (stopped,) = [worker for worker in workers if worker.process.pid == process]
            os.kill(process, signal.SIGSTOP)
        stopped.heard -= 3600


def test_a_process_that_hangs_is_ended_and_its_shards_are_scored_by_the_other(crawl, tmp_path, caplog, monkeypatch):
    home, found = _home(crawl, tmp_path), {}
    with caplog.at_level(logging.WARNING):
        _stop_the_first_that_publishes(home, found, monkeypatch)
    assert "hung (1800 s without a pair) and was ended; its shards go to another worker: web/" in caplog.text
    assert versions(found) == crawl[1]
    assert multiprocessing.active_children() == []


def test_the_planted_bug_of_never_looking_waits_for_it_for_ever(crawl, tmp_path, monkeypatch):
    monkeypatch.setattr(devices._Worker, "silent", lambda self: 0.0)
    home, found = _home(crawl, tmp_path), {}
    waits = threading.Thread(target=_stop_the_first_that_publishes, args=(home, found, monkeypatch))
    waits.start()
    waits.join(60)
    assert waits.is_alive()
    assert len(found) < SHARDS
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGCONT)
    waits.join(60)
    assert versions(found) == crawl[1]


def test_a_worker_whose_error_is_for_people_says_it_in_full(crawl, tmp_path):
    home = _home(crawl, tmp_path)
    (tmp_path / "landing").unlink()
    with pytest.raises(CompalignError, match=r"shard web/0000\d\.tar in .*expected the delivery"):
        scored(home, Where("devices", 2))
    assert multiprocessing.active_children() == []


def test_workers_of_a_killed_parent_end_by_themselves(crawl, tmp_path):
    home = _home(crawl, tmp_path)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    configs = devices._sharing_cores([REFERENCE])
    worker = multiprocessing.get_context("spawn").Process(
        target=devices._serve, args=(theirs, works_of(home)[0], configs[0])
    )
    worker.start()
    theirs.close()
    assert ours.recv() == ("free",)
    ours.close()
    worker.join(30)
    assert worker.exitcode == 0


def test_a_worker_that_is_told_to_end_removes_what_it_had(crawl, tmp_path):
    home = _home(crawl, tmp_path)
    (worker,) = devices._start(works_of(home)[0], [REFERENCE])
    assert worker.pipe.recv() == ("free",)
    worker.end()
    assert worker.process.exitcode == 0, "it ended by itself; a signal would have left its temporary files"


def test_two_processes_at_one_shard_publish_it_once_and_both_return_that(tmp_path):
    home = prepare(tmp_path / "home", shards=1)
    told = race(home)
    (manifest,) = manifests(home)
    winner = places_of(home).store.read(manifest)
    assert [told[0]["worker"], told[1]["worker"]] == [told[0]["worker"]] * 2
    assert all(entry["manifest"] == winner.decode() for entry in told)
    assert sorted(entry["wrote"] for entry in told) == [False, True]


def test_the_planted_bug_a_store_that_looks_before_it_writes_turns_this_red(tmp_path):
    home = prepare(tmp_path / "home", shards=1)
    told = race(home, bug=True)
    assert [entry["wrote"] for entry in told] == [True, True]
