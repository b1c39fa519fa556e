"""A person may make any sound version current again, and no run moves `current` away from it."""

import shutil
from dataclasses import replace

import pytest

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocks, current, restore
from compalign_dagster.selection.in_force import history
from compalign_dagster.selection.policy import Policy
from tests.support.small_version import SmallStore, small_store

REASON = Reason("a curator", "the new one lost the charts")
TEN, THIRTY = Policy(keep_fraction="0.1"), Policy(keep_fraction="0.3")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> SmallStore:
    return small_store(tmp_path_factory.mktemp("base"), pairs=12)


@pytest.fixture
def small(base, tmp_path) -> SmallStore:
    shutil.copytree(base.home, tmp_path / "copy")
    return replace(base, home=tmp_path / "copy")


def policy_number(small: SmallStore) -> int:
    return history(small.store)[-1].version


def go_back(small: SmallStore, name: str) -> decisions.Decision:
    return restore.restore(small.store, name, REASON, policy=policy_number(small))


def now(small: SmallStore) -> str:
    return current.read(small.store).work_key


def test_a_restored_version_is_current_and_the_decision_names_old_and_new(small):
    old, new = small.filter(THIRTY).artifact, small.filter(TEN).artifact
    decision = go_back(small, old.work_key[:8])
    assert now(small) == old.work_key
    assert decision.value["manifest"] == old.manifest_key
    assert decision.value["replaces"] == new.manifest_key
    assert (decision.value["by"], decision.value["why"]) == (REASON.by, REASON.why)
    assert [item.version for item in current.history(small.store)] == [1, 2, 3]


def test_no_run_moves_current_away_from_what_a_person_restored(small, caplog):
    old = small.filter(THIRTY).artifact
    small.filter(TEN)
    go_back(small, old.work_key)
    small.filter(TEN)  # the same work again
    small.land_more()
    newer = small.filter(TEN)  # by the policy in force, on newer scores
    assert newer.facts["kept"] > 0
    assert now(small) == old.work_key
    assert "a person restored it" in caplog.text


def test_a_run_that_was_under_way_when_a_person_restored_does_not_win(small):
    old, slow = small.filter(THIRTY).artifact, small.filter(TEN).artifact
    small.filter(Policy(keep_fraction="0.2"))
    go_back(small, old.work_key)
    for policy in (1, 2, 3):
        assert not current.move(slow, policy=policy, ledger=99)


def test_a_policy_that_a_person_adopts_later_ends_the_hold(small):
    old = small.filter(THIRTY).artifact
    small.filter(TEN)
    go_back(small, old.work_key)
    after = small.filter(Policy(keep_fraction="0.2"))
    assert now(small) == after.artifact.work_key
    small.land_more()
    assert now(small) != small.filter(Policy(keep_fraction="0.2"), move=False).artifact.work_key
    assert small.filter(Policy(keep_fraction="0.2")).artifact.work_key == now(small)


def test_a_takedown_ends_the_hold_so_that_what_has_to_go_does_not_stay_current(small):
    old = small.filter(THIRTY)
    slow = small.filter(TEN).artifact
    go_back(small, old.artifact.work_key)
    gone = old.kept(old.batches()[0])["pair_id"][0]
    blocks.add(small.store, [blocks.entry("pair_id", gone, request="letter 1")])
    assert not current.move(slow, policy=2, ledger=99), "it was made before the takedown"
    after = small.filter(TEN)
    assert now(small) == after.artifact.work_key
    assert list(restore.blocked_pairs(after, blocks.in_force(small.store))) == []


def test_a_run_under_an_older_block_list_does_not_end_a_hold_that_came_after_the_takedown(small):
    small.filter(THIRTY)
    slow = small.filter(TEN).artifact
    blocks.add(small.store, [blocks.entry("url_host", "nobody.example.org", request="letter 1")])
    fresh = small.filter(Policy(keep_fraction="0.2")).artifact
    go_back(small, fresh.work_key)
    assert not current.move(slow, policy=3, ledger=99)
    assert now(small) == fresh.work_key


@pytest.fixture
def meanwhile(monkeypatch):
    """Something that happens after a restore has looked through the pairs, before it decides."""
    whole = restore._require_none_blocked

    def happens(event):
        def looked(*given):
            whole(*given)
            event()

        monkeypatch.setattr(restore, "_require_none_blocked", looked)

    return happens


def test_a_takedown_that_arrives_during_a_restore_ends_the_hold(small, meanwhile):
    old = small.filter(THIRTY)
    small.filter(TEN)
    gone = old.kept(old.batches()[0])["pair_id"][0]
    meanwhile(lambda: blocks.add(small.store, [blocks.entry("pair_id", gone, request="letter 1")]))
    go_back(small, old.artifact.work_key)
    after = small.filter(TEN)
    assert now(small) == after.artifact.work_key


def test_a_restore_does_not_replace_what_a_newer_block_list_has_made_current(small, meanwhile):
    old = small.filter(THIRTY)
    small.filter(TEN)
    gone = old.kept(old.batches()[0])["pair_id"][0]

    def take_down():
        blocks.add(small.store, [blocks.entry("pair_id", gone, request="letter 1")])
        small.filter(TEN)

    meanwhile(take_down)
    with pytest.raises(InputError, match="block list"):
        go_back(small, old.artifact.work_key)
    assert now(small) != old.artifact.work_key


def test_letting_go_lets_the_next_run_move_current(small):
    old = small.filter(THIRTY).artifact
    small.filter(TEN)
    go_back(small, old.work_key)
    decision = current.follow(small.store, REASON)
    assert decision.value["manifest"] == old.manifest_key
    assert now(small) == old.work_key
    assert current.follow(small.store, REASON) is None
    assert small.filter(TEN).artifact.work_key == now(small)


def test_the_planted_bug_of_a_hold_that_is_not_looked_at_turns_it_red(small, monkeypatch):
    old = small.filter(THIRTY).artifact
    small.filter(TEN)
    go_back(small, old.work_key)
    monkeypatch.setattr(current, "_is_held", lambda *_: False)
    small.filter(TEN)
    assert now(small) != old.work_key


def test_a_version_that_keeps_a_blocked_pair_is_not_restored(small):
    old = small.filter(THIRTY)
    small.filter(TEN)
    gone = old.kept(old.batches()[0])["pair_id"][0]
    blocks.add(small.store, [blocks.entry("pair_id", gone, request="letter 1")])
    with pytest.raises(InputError, match=f"{gone} .takedown."):
        go_back(small, old.artifact.work_key)
    assert now(small) != old.artifact.work_key


def test_a_block_list_that_names_no_pair_of_a_version_lets_it_be_restored(small):
    old = small.filter(TEN)
    small.filter(THIRTY)
    dropped = old.decided(old.batches()[0]).filter(reason="below_cut")["pair_id"][-1]
    assert dropped not in old.kept(old.batches()[0])["pair_id"].to_list()
    blocks.add(small.store, [blocks.entry("pair_id", dropped, request="letter 1")])
    if not list(restore.blocked_pairs(old, blocks.in_force(small.store))):
        go_back(small, old.artifact.work_key)
        assert now(small) == old.artifact.work_key


def test_a_version_whose_list_is_gone_or_whose_bytes_were_altered_is_not_restored(small):
    old = small.filter(THIRTY)
    small.filter(TEN)
    path = small.store.path(old.artifact.file_key("cuts.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(CompalignError, match=r"cuts\.parquet"):
        go_back(small, old.artifact.work_key)
    path.write_bytes(whole)
    page = small.store.path(old.artifact.file_key("policy.json"))
    page.write_bytes(page.read_bytes() + b" ")
    with pytest.raises(CompalignError, match=r"policy\.json"):
        go_back(small, old.artifact.work_key)
    page.write_bytes(page.read_bytes()[:-1])
    small.store.delete(old.lists["list_key"][0])
    with pytest.raises(InputError, match="ranked list"):
        go_back(small, old.artifact.work_key)


def test_a_version_that_there_is_not_is_refused_with_those_there_are(small):
    known = small.filter(THIRTY).artifact.work_key[:12]
    with pytest.raises(InputError, match=known):
        go_back(small, "ffffffff")
