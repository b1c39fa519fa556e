"""A real Ray cluster of several node processes on this machine, one of which is killed while it scores."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compalign_dagster.compute import Needs
from compalign_dagster.errors import InputError
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.where import Where, score_works
from tests.support.listening import LOOPBACK
from tests.support.scoring import REFERENCE, manifests, prepare, scored, versions, works_of

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(600)]

SHARDS = 8
_NEEDS = Needs(memory_gib=0.25)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    home = prepare(tmp_path_factory.mktemp("ray") / "home", shards=SHARDS, pairs=60)
    alone = shutil.copytree(home, home.with_name("alone"))
    return home, versions(scored(alone))


@pytest.fixture
def cluster(monkeypatch):
    """A head that holds no actor and two machines with room for two each; nothing of it is left afterwards."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    folder = found.head_node.get_session_dir_path()
    try:
        for _ in range(2):
            found.add_node(num_cpus=2)
        yield found
    finally:
        found.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _kill_machine_of(cluster, process: int) -> None:
    """SIGKILL for the node process under which an actor runs, and for all of its children."""
    parent = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    (node,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == parent]
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in (parent, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def test_a_machine_that_is_killed_while_it_scores_costs_nothing_but_time(crawl, cluster, caplog):
    home, found, killed = crawl[0], {}, None
    where = Where("ray", 2, cluster.address, _NEEDS)
    with caplog.at_level(logging.INFO):
        for work, artifact, reused in score_works(works_of(home), REFERENCE, where):
            assert not reused
            found[work.shard] = artifact
            if killed is None:
                killed = artifact.facts["worker"]
                _kill_machine_of(cluster, int(killed.split()[-1]))
    assert versions(found) == crawl[1], "the bytes that one process makes"
    assert len(manifests(home)) == SHARDS, "each shard once"
    assert "died" in caplog.text
    assert "its shards go to another worker" in caplog.text
    workers = {artifact.facts["worker"] for artifact in found.values()}
    assert killed in workers
    assert len(workers) > 1
    import ray

    assert not ray.is_initialized()


def _addresses(**variables) -> list[str]:
    """Where a cluster of this machine alone listens, in a process that has not imported Ray before."""
    code = """if True:
        from compalign_dagster.scoring.on_ray import _cluster
        from tests.support.listening import listening
        with _cluster(None, 1) as ray:
            assert ray.get(ray.remote(lambda: 1).remote()) == 1
            print(*listening())"""
    environment = {**os.environ, **variables}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return ran.stdout.split()


def test_a_cluster_of_this_machine_alone_listens_to_it_alone():
    found = _addresses()
    assert found
    assert set(found) <= set(LOOPBACK)


def test_the_planted_bug_of_letting_ray_choose_listens_to_everybody():
    assert not set(_addresses(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="1")) <= set(LOOPBACK)


def test_a_gpu_that_no_machine_of_the_cluster_has_is_refused_at_once(crawl, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    home = crawl[0]
    for manifest in manifests(home):
        (home / "store" / manifest).unlink()  # otherwise nothing is left to score
    with pytest.raises(InputError, match=r"Ray cluster for the device 'cuda': expected a machine with a CPU, 1 GPUs"):
        list(score_works(works_of(home), ScoringConfig(device="cuda"), Where("ray", 1, None, _NEEDS)))


def test_a_cluster_that_does_not_answer_is_named(crawl):
    home = crawl[0]
    for manifest in manifests(home):
        (home / "store" / manifest).unlink()
    with pytest.raises(InputError, match=r"Ray cluster at 'nowhere'|Ray cluster at nowhere"):
        list(score_works(works_of(home), REFERENCE, Where("ray", 1, "nowhere", _NEEDS)))
