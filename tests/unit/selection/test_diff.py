"""A diff holds exactly what one of two versions keeps and the other does not, each pair with its cause."""

import shutil
from dataclasses import replace

import polars as pl
import pytest

from compalign_dagster.selection import blocks, diff
from compalign_dagster.selection.diff import CAUSES, ENTERED, LEFT, changes
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.version import Version
from tests.support.shard_builder import sample, tar
from tests.support.small_version import SmallStore, small_store

GLOBAL = Policy(keep_fraction="0.3")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> SmallStore:
    return small_store(tmp_path_factory.mktemp("base"), pairs=30)


@pytest.fixture
def small(base, tmp_path) -> SmallStore:
    """A store of its own for each test, copied."""
    shutil.copytree(base.home, tmp_path / "copy")
    return replace(base, home=tmp_path / "copy")


def kept(version: Version) -> set[tuple]:
    return {row for batch in version.batches() for row in version.kept(batch).select(TIE_BREAK).iter_rows()}


def causes(a: Version, b: Version) -> dict[tuple[str, str], int]:
    """Counts by side and cause, after the pairs were compared with both versions' own."""
    frames = list(changes(a, b))
    found = (
        pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys([*TIE_BREAK, "side", "cause"], pl.String))
    )
    entered, left = (found.filter(side=side).select(TIE_BREAK).rows() for side in (ENTERED, LEFT))
    assert len(entered) == len(set(entered))
    assert set(entered) == kept(b) - kept(a)
    assert len(left) == len(set(left))
    assert set(left) == kept(a) - kept(b)
    assert set(found["cause"]) <= set(CAUSES)
    account = diff.diff(a, b)
    counted = {(side, cause): n for side, cause, n in found.group_by("side", "cause").len().iter_rows()}
    assert dict(account.counts) == counted
    for side in (ENTERED, LEFT):
        assert account.total(side) == sum(account.rewards[side]) if account.total(side) else side not in account.rewards
    return counted


def test_what_a_diff_reads_is_known_before(small):
    a, b = small.filter(GLOBAL), small.filter(keep_fraction="0.5")
    assert diff.rows_read(a, a) == 0
    assert diff.rows_read(a, b) == b.facts["kept"] - a.facts["kept"], "the rows between the cuts"
    new = small.land_more().key
    grown = small.filter(keep_fraction="1")
    rows = {batch: grown.ranked_list(batch).facts["rows"] for batch in grown.batches()}
    between = sum(segment["taken"] for segment in grown.lists.to_dicts() if segment["batch"] != new)
    assert diff.rows_read(b, grown) == rows[new] + between - b.facts["kept"]
    other = small.filter(keep_fraction="1", reward_floor=0.0)
    assert diff.rows_read(grown, other) == 2 * sum(rows.values()), "other rules make other lists"
    capped = small.filter(keep_fraction="1", most_per_domain=500)
    assert diff.rows_read(grown, capped) == 0, "nothing is taken away, and the older policy has no caps"
    assert diff.rows_read(capped, grown) == grown.facts["pairs"], "its caps are worked out on all of them"


def test_nothing_changes_between_a_version_and_itself(small):
    version = small.filter(GLOBAL)
    assert causes(version, version) == {}
    assert diff.diff(version, version).as_json()["entered"]["mean_reward"] is None


@pytest.mark.parametrize(
    ("before", "after", "side"), [("0.1", "0.4", ENTERED), ("0.4", "0.1", LEFT), ("0", "1", ENTERED)]
)
def test_another_fraction_is_the_cause_of_what_it_moves(small, before, after, side):
    found = causes(small.filter(keep_fraction=before), small.filter(keep_fraction=after))
    assert set(found) == {(side, "cut")}


def test_where_only_the_cut_moved_only_rows_between_the_cuts_are_read(small, monkeypatch):
    a, b = small.filter(keep_fraction="0.3"), small.filter(keep_fraction="0.32")
    monkeypatch.setattr(Version, "decided", lambda *_: pytest.fail("a whole list was read"))
    assert diff.diff(a, b).total(ENTERED) > 0


def test_budgets_of_corpora_let_pairs_enter_and_leave(small):
    found = causes(small.filter(GLOBAL), small.filter(Policy(keep_fraction="0.3", per_corpus={"shop": "0.1"})))
    assert set(found) >= {(LEFT, "cut")}
    assert {cause for _, cause in found} == {"cut"}


def test_caps_take_away_and_let_others_in(small):
    found = causes(small.filter(GLOBAL), small.filter(GLOBAL.model_copy(update={"most_per_domain": 3})))
    assert found[LEFT, "caps"] > 0
    assert {side for side, _ in found} == {ENTERED, LEFT}
    assert {cause for _, cause in found} == {"caps", "cut"}
    back = causes(small.filter(GLOBAL.model_copy(update={"most_per_domain": 3})), small.filter(GLOBAL))
    assert back[ENTERED, "caps"] == found[LEFT, "caps"]


@pytest.mark.parametrize("rule", [{"caption_patterns": ["left"]}, {"sampling": {"floor": -2.0, "full": 3.0}}], ids=str)
def test_rules_are_the_cause_of_what_they_refuse_and_of_what_takes_its_place(small, rule):
    found = causes(small.filter(GLOBAL), small.filter(Policy(keep_fraction=GLOBAL.keep_fraction, **rule)))
    assert set(found) == {(LEFT, "rules"), (ENTERED, "rules")}


def test_new_and_removed_shards_are_named_and_move_the_cut_for_others(small):
    first = small.filter(GLOBAL)
    small.land_more()
    second = small.filter(GLOBAL)
    found = causes(first, second)
    assert found[ENTERED, "shard_new"] > 0
    assert {cause for _, cause in found} <= {"shard_new", "crawl"}
    small.remove("web/00000.tar")
    third = small.filter(GLOBAL)
    found = causes(second, third)
    assert found[LEFT, "shard_removed"] > 0
    assert {cause for _, cause in found} <= {"shard_removed", "crawl"}
    assert diff.shards_changed(second, third) == {"new": 0, "removed": 1, "replaced": 0}


def test_a_shard_that_was_delivered_again_is_compared_across_its_batches(small):
    first = small.filter(GLOBAL)
    path = small.home / "landing" / "web/00000.tar"
    members = [entry for at in range(20) for entry in sample(f"{at:05d}", f"new thing {at}", seed=5_000 + at)]
    path.write_bytes(tar(members))
    small.settle()
    found = causes(first, small.filter(GLOBAL))
    assert found[LEFT, "shard_replaced"] > 0
    assert {cause for _, cause in found} <= {"shard_replaced", "crawl"}


def test_another_model_is_the_cause_where_policy_and_shards_are_the_same(small):
    first = small.filter(GLOBAL)
    small.promote("second")
    for batch in small.batches:
        small.score(batch)
    found = causes(first, small.filter(GLOBAL))
    assert {cause for _, cause in found} <= {"model", "scoring"}
    assert {side for side, cause in found if cause == "model"} == {ENTERED, LEFT}


def test_a_takedown_is_named_and_so_is_what_it_lets_in(small):
    first = small.filter(GLOBAL)
    gone = sorted(kept(first))[0]
    blocks.add(small.store, [blocks.entry("pair_id", gone[0], request="letter 1")])
    found = causes(first, small.filter(GLOBAL))
    assert found[LEFT, "takedown"] >= 1
    assert {cause for _, cause in found} == {"takedown", "crawl"}


def test_samples_are_bounded_and_do_not_depend_on_the_order_of_batches(small):
    a, b = small.filter(keep_fraction="0.1"), small.filter(keep_fraction="0.9")
    frames = list(changes(a, b))
    one, other = diff.Diff(), diff.Diff()
    for frame in frames:
        one.add(frame)
    for frame in reversed(frames):
        other.add(frame)
    assert one.samples[ENTERED, "cut"].equals(other.samples[ENTERED, "cut"])
    assert one.samples[ENTERED, "cut"].height == diff.SAMPLE


def test_the_planted_bug_of_a_passed_over_batch_turns_the_comparison_red(small, monkeypatch):
    a, b = small.filter(keep_fraction="0.1"), small.filter(keep_fraction="0.9")
    right = diff._different
    monkeypatch.setattr(diff, "_different", lambda *versions: list(right(*versions))[1:])
    with pytest.raises(AssertionError):
        causes(a, b)
