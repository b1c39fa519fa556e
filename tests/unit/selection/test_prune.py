"""Prune removes old versions and lists that nothing needs, never what is current or was decided on lately."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import current, deciding, prune, restore
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from tests.support.small_version import SmallStore, small_store

REASON = Reason("an operator", "the disk is full")
LATER = datetime.now(UTC) + timedelta(days=2)
FLOOR = Policy(keep_fraction="0.3", reward_floor=-1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> SmallStore:
    """Six versions: two by rules of their own, with lists that no other version needs."""
    small = small_store(tmp_path_factory.mktemp("base"), pairs=12)
    small.filter(FLOOR)
    for fraction in ("0.1", "0.2", "0.3", "0.4"):
        small.filter(keep_fraction=fraction)
    small.filter(Policy(keep_fraction="0.3", reward_floor=-2.0), move=False)
    return small


@pytest.fixture
def small(base, tmp_path) -> SmallStore:
    shutil.copytree(base.home, tmp_path / "copy")
    return replace(base, home=tmp_path / "copy")


def names(items) -> set[str]:
    return {item.manifest_key for item in items}


def published(small: SmallStore, kind: str) -> set[str]:
    return {item.key for item in small.store.list(f"{kind}/") if item.key.endswith("/manifest.json")}


def assert_sound(small: SmallStore) -> None:
    """Every version that is there reads back whole."""
    for key in published(small, "filtered_dataset"):
        version = Version.open(artifacts.load(small.store, key))
        assert sum(version.kept(batch).height for batch in version.batches()) == version.facts["kept"]


def test_a_plan_removes_nothing(small):
    before = [item.key for item in small.store.list()]
    found = prune.plan(small.store, 1, now=LATER)
    assert found.versions
    assert found.lists
    assert found.size > 0
    assert [item.key for item in small.store.list()] == before


def test_a_list_of_which_a_version_takes_no_row_stays_with_the_version(small):
    """Such as that of a batch whose pairs are all quarantined."""
    version = Version.open(current.read(small.store))
    without = replace(version, lists=version.lists.filter(pl.col("batch") != small.batches[0]))
    rare = small.filter(Policy(keep_fraction="0.3", reward_floor=-2.0), move=False)
    decided = replace(without, inputs=rare.inputs[1:])
    made = deciding.publish(decided, small.ledger, "f" * 64, config={})
    latest.point(made)
    found = prune.plan(small.store, 1, now=LATER)
    assert made.manifest_key in names(found.kept)
    assert not {item.key for item in made.inputs} & names(found.lists)


def test_the_newest_stay_and_with_them_current_and_the_lists_they_need(small):
    found = prune.plan(small.store, 2, now=LATER)
    assert len(found.versions) == 3
    assert current.read(small.store).manifest_key in names(found.kept)
    prune.prune(small.store, found, REASON)
    assert published(small, "filtered_dataset") == names(found.kept)
    assert not names(found.lists) & published(small, "ranked_pairs")
    assert_sound(small)
    assert {item.partition for item in found.lists} == set(small.batches)
    assert prune.plan(small.store, 2, now=LATER).versions == []


def test_what_was_restored_lately_stays_however_old(small):
    first = latest.history(small.store, "filtered_dataset")[0]
    restore.restore(small.store, first.work_key, REASON, policy=9)
    prune.prune(small.store, prune.plan(small.store, 1, now=LATER), REASON)
    assert current.read(small.store).manifest_key == first.manifest_key
    assert_sound(small)


def test_what_any_of_the_last_decisions_or_reports_names_stays(small):
    one, other, *_ = latest.history(small.store, "filtered_dataset")
    decisions.decide(small.store, "release", {"manifest": one.manifest_key}, after=0)
    report = artifacts.publish(
        small.store,
        "eval_report",
        "r" * 32,
        {"r": b"1"},
        code_version=1,
        inputs=[other.as_input()],
        config={},
        facts={},
    )
    latest.point(report)
    found = prune.plan(small.store, 1, now=LATER)
    assert {one.manifest_key, other.manifest_key} <= names(found.kept)
    decisions.decide(small.store, "release", {"manifest": "another"}, after=1)
    assert one.manifest_key not in names(prune.plan(small.store, 1, now=LATER).kept)


def test_what_a_person_spares_stays_and_an_unknown_name_is_refused(small):
    first = latest.history(small.store, "filtered_dataset")[0]
    assert first.manifest_key in names(prune.plan(small.store, 1, now=LATER).versions)
    prune.prune(small.store, prune.plan(small.store, 1, [first.work_key[:8]], now=LATER), REASON)
    assert first.manifest_key in published(small, "filtered_dataset")
    assert_sound(small)
    with pytest.raises(InputError, match="ffffffff"):
        prune.plan(small.store, 1, ["ffffffff"], now=LATER)


def test_what_is_younger_than_a_day_stays(small):
    found = prune.plan(small.store, 1)
    assert found.versions == []
    assert found.lists == []


def test_everything_else_in_the_store_stays(small):
    kinds = ("filtered_dataset/", "ranked_pairs/", "decisions/")
    before = {item for item in small.store.list() if not item.key.startswith(kinds)}
    prune.prune(small.store, prune.plan(small.store, 1, now=LATER), REASON)
    assert {item for item in small.store.list() if not item.key.startswith(kinds)} == before


def test_the_record_says_what_went_by_whom_and_why(small):
    found = prune.plan(small.store, 1, now=LATER)
    decision = prune.prune(small.store, found, REASON)
    assert [entry["manifest"] for entry in decision.value["versions"]] == [v.manifest_key for v in found.versions]
    assert (decision.value["by"], decision.value["why"]) == (REASON.by, REASON.why)


class KilledError(Exception):
    pass


def killed_after(store, deletes: int):
    """The store, in which a process dies at some deletion."""
    left, right = iter(range(deletes)), store.delete

    def delete(key: str) -> None:
        if next(left, None) is None:
            raise KilledError
        right(key)

    store.delete = delete
    return store


@pytest.mark.parametrize("deletes", [0, 1, 2, 5, 9, 17])
def test_a_crash_at_any_deletion_leaves_sound_versions_and_the_next_prune_removes_the_rest(small, deletes):
    found = prune.plan(small.store, 1, now=LATER)
    with pytest.raises(KilledError):
        prune.prune(killed_after(small.store, deletes), found, REASON)
    assert_sound(small)
    prune.prune(small.store, prune.plan(small.store, 1, now=LATER), Reason("an operator", "again"))
    assert_sound(small)
    for item in (*found.versions, *found.lists):
        assert list(small.store.list(f"{item.path}/")) == []


def test_the_planted_bug_of_files_before_manifests_turns_it_red(small, monkeypatch):
    def backwards(store, path):
        for item in sorted(store.list(f"{path}/"), key=lambda item: item.key.endswith("/manifest.json")):
            store.delete(item.key)

    monkeypatch.setattr(prune, "_remove", backwards)
    with pytest.raises(KilledError):
        prune.prune(killed_after(small.store, 5), prune.plan(small.store, 1, now=LATER), REASON)
    with pytest.raises(Exception, match=r"object|file"):
        assert_sound(small)


def test_a_version_of_an_earlier_layout_may_stay_or_go(small):
    old = artifacts.publish(
        small.store,
        "filtered_dataset",
        "0" * 32,
        {"kept.parquet": b"x"},
        code_version=1,
        inputs=[],
        config={},
        facts={},
    )
    latest.point(old)
    assert old.manifest_key in names(prune.plan(small.store, 1, now=LATER).kept)
    latest.point(latest.history(small.store, "filtered_dataset")[0])
    assert old.manifest_key in names(prune.plan(small.store, 1, now=LATER).versions)
    with pytest.raises(CompalignError, match="earlier release"):
        restore.restore(small.store, old.work_key, REASON, policy=9)


def test_at_least_one_version_stays(small):
    with pytest.raises(InputError, match="at least 1"):
        prune.plan(small.store, 0, now=LATER)
