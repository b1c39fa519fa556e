"""Many processes write one decided fact at once: contiguous versions, one winner each, no reader goes backwards."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import LocalStore, Store, open_store
from tests.support.processes import ROOT
from tests.support.racing import FACT

_BUCKET_COMMITS = 504

pytestmark = [
    pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(1800), pytest.mark.usefixtures("told"),
]  # fmt: skip


def race(
    kind: str,
    url: str,
    folder: Path,
    *,
    writers: int,
    readers: int,
    commits: int,
    bug: str = "",
    env: dict | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each writer and each reader reports."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.racing", kind, url, str(folder)]
    command += [*map(str, (writers, readers, commits)), *([bug] if bug else [])]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, check=True)
    found = [
        [json.loads((folder / f"{role}-{at}.json").read_text()) for at in range(count)]
        for role, count in (("writer", writers), ("reader", readers))
    ]
    looks = sum(report.get("looks", 0) for report in found[1])
    lost = sum(report.get("lost", 0) for report in found[0])  # `current.move` does not tell
    print(
        f"{kind} in {url.partition(':')[0] if '://' in url else 'a folder'}: {writers} writers, {commits} commits, "
        f"{lost or 'uncounted'} lost races, {readers} readers, {looks} looks, {time.monotonic() - started:.0f} s"
    )
    return found[0], found[1]


def problems(store: Store, wrote: list[dict], read: list[dict], commits: int) -> list[str]:
    """Where the reports and the store contradict what a sequence of decisions is."""
    found = [report["crashed"].splitlines()[-1] for report in (*wrote, *read) if "crashed" in report]
    found += [wrong for report in read for wrong in report.get("wrong", ())]
    winners = [(version, writer) for writer, report in enumerate(wrote) for version in report.get("won", ())]
    found += [f"version {version} has {n} winners" for version, n in Counter(v for v, _ in winners).items() if n > 1]
    try:
        facts = decisions.history(store, FACT)
    except (CompalignError, ValueError) as error:
        return [*found, str(error)]
    if len(facts) != commits:
        found.append(f"{len(facts)} versions of {commits} commits")
    if sorted(winners) != [(fact.version, fact.value["writer"]) for fact in facts]:
        found.append("who was told to have won is not who is written down")
    found += [
        f"version {fact.version} without its parent" for fact in facts if not store.exists(fact.value["manifest"])
    ]
    return found


def test_sixteen_processes_commit_two_thousand_versions_to_one_fact_in_a_folder(tmp_path):
    url = str(tmp_path / "store")
    wrote, read = race("facts", url, tmp_path / "seen", writers=16, readers=8, commits=2000)
    assert problems(LocalStore(Path(url)), wrote, read, 2000) == []
    assert sum(report["lost"] for report in wrote) > 100, "without lost races nothing was shown"
    assert all(report["looks"] > 20 for report in read)


def test_eight_processes_commit_five_hundred_versions_to_one_fact_in_a_bucket(tmp_path, s3, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    url = f"{s3.url}/store"
    wrote, read = race("facts", url, tmp_path / "seen", writers=8, readers=4, commits=_BUCKET_COMMITS)
    assert problems(open_store(url), wrote, read, _BUCKET_COMMITS) == []
    assert sum(report["lost"] for report in wrote) > 20


def test_datasets_that_race_for_current_never_take_it_back(tmp_path):
    store = LocalStore(tmp_path / "store")
    wrote, read = race("current", store.url, tmp_path / "seen", writers=16, readers=8, commits=640)
    assert [report.get("crashed") for report in (*wrote, *read)] == [None] * 24
    assert [wrong for report in read for wrong in report["wrong"]] == []
    moves = [fact.value for fact in decisions.history(store, "current")]
    print(f"current moved {len(moves)} times, {640 - sum(report['moved'] for report in wrote)} offers were refused")
    assert len(moves) == sum(report["moved"] for report in wrote)
    for before, after in itertools.pairwise(moves):
        assert before["policy"] <= after["policy"]
        assert before["ledger"] <= after["ledger"]
    assert 0 < len(moves) < 640


def test_a_store_that_looks_before_it_writes_is_caught(tmp_path):
    url = str(tmp_path / "store")
    wrote, read = race("facts", url, tmp_path / "seen", writers=16, readers=2, commits=480, bug="check-then-write")
    found = problems(LocalStore(Path(url)), wrote, read, 480)
    print(f"caught: {len(found)} problems, first: {found[:3]}")
    assert found
