"""kill -9 at random moments of index, score, ledger and filter: the same bytes, nothing lost, nothing twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.system]

POINTS, SEED = 50, 20260


def campaign(folder: Path, *options: object) -> dict[str, Any]:
    """Run the killing harness in a process of its own: this one has threads, which do not survive a fork."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.killing", str(folder / "homes"), *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_fifty_random_points_and_run_again_the_store_is_that_of_an_undisturbed_run(tmp_path, capsys):
    found = campaign(tmp_path, "--points", POINTS, "--seed", SEED)
    with capsys.disabled():
        print(f"\n{found}")
    assert found["findings"] == []
    assert found["kills"] == POINTS
    assert len(found["killed"]) >= 4, "the kills reach every stage"


def test_the_planted_bug_an_object_written_in_place_turns_this_red(tmp_path):
    found = campaign(tmp_path, "--points", 20, "--seed", SEED, "--bug", "writes-in-place", "--first")
    assert found["findings"]


def test_the_planted_bug_finished_shards_that_are_not_found_turns_this_red(tmp_path):
    found = campaign(tmp_path, "--points", 6, "--seed", SEED, "--bug", "finds-nothing", "--first")
    assert "done again" in found["findings"][0]["finding"]
