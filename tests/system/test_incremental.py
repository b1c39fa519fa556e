"""The incremental table, measured anew on a small crawl; the page shows a run of the same code."""

import json

import pytest

from benchmarks.incremental.__main__ import BATCH_SHARDS, HERE, MARKER, PAGE, measure, table
from compalign_dagster import artifacts

pytestmark = pytest.mark.slow

PAIRS, SHARD_PAIRS = 300, 30
SHARDS = PAIRS // SHARD_PAIRS


def work(row: dict) -> tuple[int, ...]:
    return tuple(row[name] for name in ("pairs_read", "shards_read", "pairs_scored", "shards_scored"))


def claims(rows: list[dict]) -> dict[str, bool]:
    """Each claim of `docs/incremental.md` by the change it is about."""
    by_change = {row["change"]: row for row in rows}
    one_shard = (SHARD_PAIRS, 1, SHARD_PAIRS, 1)
    more = BATCH_SHARDS * SHARD_PAIRS
    wanted = {
        "everything is new": (PAIRS, SHARDS, PAIRS, SHARDS),
        "nothing changed": (0, 0, 0, 0),
        "the same bytes are delivered again": (SHARD_PAIRS, 1, 0, 0),
        "one caption changed in one shard": one_shard,
        "the policy changed": (0, 0, 0, 0),
        "one batch more": (more, BATCH_SHARDS, more, BATCH_SHARDS),
        "another model is promoted": (0, 0, PAIRS + more, SHARDS + BATCH_SHARDS),
    }
    kept = {"nothing changed"}  # a shard that is delivered again moves to another batch's list, and keeps its pairs
    assert wanted.keys() == by_change.keys()
    return {
        change: work(row) == wanted[change] and row["dataset_made"] == (change not in kept)
        for change, row in by_change.items()
    }


def test_only_what_changed_is_read_and_scored(tmp_path):
    rows = measure(tmp_path / "home", pairs=PAIRS, shard_pairs=SHARD_PAIRS)
    assert all(claims(rows).values()), table(rows)


def test_the_planted_bug_work_that_is_not_found_again_turns_this_red(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "find", lambda *_: None)
    rows = measure(tmp_path / "home", pairs=PAIRS, shard_pairs=SHARD_PAIRS)
    assert work(next(row for row in rows if row["change"] == "nothing changed")) != (0, 0, 0, 0)


def test_the_page_and_the_result_are_of_one_run():
    rows = json.loads((HERE / "result.json").read_text())["runs"]
    assert PAGE.read_text().partition(MARKER)[2].strip() == table(rows).strip()
    by_change = {row["change"]: row for row in rows}
    assert work(by_change["nothing changed"]) == (0, 0, 0, 0)
    assert by_change["one caption changed in one shard"]["shards_scored"] == 1
    assert by_change["another model is promoted"]["pairs_read"] == 0
