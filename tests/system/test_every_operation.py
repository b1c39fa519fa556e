"""Whichever storage operation of index, score, ledger, filter and publish fails or is the last: run again, same end.

Not a sample: the points are counted up until a run ends with no fault fired.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import small_job
from tests.support.operations import MODES
from tests.support.processes import ROOT

pytestmark = [
    pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(1800), pytest.mark.usefixtures("told"),
]  # fmt: skip

_EXPLORERS = 2  # processes, each with every other point


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("small-job")
    small_job.prepare(home)
    return home


def _explorer(home: Path, first: int, step: int, modes: str, *bug: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.operations", str(home), str(first), str(step), modes, *bug]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)


def _cases(explorer: subprocess.Popen[str]) -> list[dict]:
    out, _ = explorer.communicate()
    assert explorer.returncode == 0, out[-2000:]
    return [json.loads(line) for line in out.splitlines()]


def test_a_fault_at_any_storage_operation_changes_nothing_once_the_job_is_run_again(home):
    explorers = [_explorer(home, first, _EXPLORERS, ",".join(MODES)) for first in range(1, _EXPLORERS + 1)]
    cases = [case for explorer in explorers for case in _cases(explorer)]
    (points,) = {case["points"] for case in cases if case["mode"] == "undisturbed"}
    assert points > 150, "the job has grown, not shrunk, since this was written"
    for mode in MODES:
        found = [case for case in cases if case["mode"] == mode]
        fired = sorted(case["at"] for case in found if case["fired"])
        wrong = [case for case in found if case["problems"]]
        print(f"every operation, {mode}: {len(fired)} of {points} points, {len(wrong)} wrong")
        assert fired == list(range(1, points + 1)), "every point, and none behind the last"
        assert not wrong, json.dumps(wrong[:3], indent=1)


@pytest.mark.parametrize("bug", sorted(small_job.BUGS))
def test_the_planted_bug_turns_it_red(home, tmp_path, bug):
    for part in ("landing", "store"):
        (tmp_path / part).symlink_to(home / part)
    cases = _cases(_explorer(tmp_path, 1, 1, "once", bug))
    (problem,) = [case for case in cases if case.get("problems")]
    print(f"{bug} is caught at point {problem['at']} ({problem['mode']}): {problem['problems'][0][:150]}")
