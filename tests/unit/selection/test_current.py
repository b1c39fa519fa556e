"""`current` moves to what is newer by policy and ledger, and never back by itself."""

import pytest

from compalign_dagster import artifacts, decisions
from compalign_dagster.errors import CompalignError
from compalign_dagster.selection import blocks, current
from compalign_dagster.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def dataset(store):
    def publish(name, *inputs):
        named = [item.as_input() for item in inputs]
        return artifacts.publish(
            store, "filtered_dataset", name, {"kept": name.encode()}, code_version=1, inputs=named, config={}, facts={}
        )

    return publish


@pytest.mark.parametrize(("policy", "ledger"), [(1, 9), (2, 4), (1, 5), (3, 4)])
def test_a_slow_run_by_an_older_policy_or_ledger_leaves_current_alone(store, dataset, caplog, policy, ledger):
    assert current.move(dataset("newer"), policy=2, ledger=5)
    assert not current.move(dataset("slow"), policy=policy, ledger=ledger)
    assert current.read(store).work_key == "newer"
    assert decisions.current(store, "current").version == 1
    assert "stays" in caplog.text


def test_a_slow_run_under_an_older_block_list_leaves_current_alone(store, dataset):
    older = blocks.add(store, [blocks.entry("url_host", "one.example.org", request="letter 1")])
    newer = blocks.add(store, [blocks.entry("url_host", "two.example.org", request="letter 2")])
    assert current.move(dataset("after both", newer), policy=2, ledger=5)
    for slow in (dataset("before any"), dataset("after one", older)):
        assert not current.move(slow, policy=2, ledger=5)
        assert not current.move(slow, policy=3, ledger=9), "whatever else is newer"
    assert current.read(store).work_key == "after both"
    blocks.withdraw(store, "letter 2")
    assert current.move(dataset("after one", older), policy=2, ledger=5), "that list is in force again"


def test_a_block_list_that_is_gone_is_not_taken_for_none(store):
    listed = blocks.add(store, [blocks.entry("url_host", "one.example.org", request="letter 1")])
    store.delete(listed.manifest_key)
    with pytest.raises(CompalignError, match="block_list"):
        blocks.in_force(store)


@pytest.mark.parametrize(("policy", "ledger"), [(2, 5), (2, 6), (3, 5), (3, 6)])
def test_current_moves_to_what_is_as_new_or_newer(store, dataset, policy, ledger):
    current.move(dataset("first"), policy=2, ledger=5)
    assert current.move(dataset("second"), policy=policy, ledger=ledger)
    assert current.read(store).work_key == "second"


def test_moving_to_the_same_dataset_again_writes_nothing(store, dataset):
    for _ in range(3):
        assert current.move(dataset("a"), policy=1, ledger=1)
    assert decisions.current(store, "current").version == 1


def test_after_a_policy_came_back_the_run_of_the_one_in_between_cannot_replace_it(store, dataset):
    current.move(dataset("thirty percent"), policy=1, ledger=5)
    current.move(dataset("thirty percent"), policy=3, ledger=5)
    assert not current.move(dataset("ten percent"), policy=2, ledger=5)
    assert current.read(store).work_key == "thirty percent"


def test_a_fact_of_an_earlier_release_without_versions_is_older_than_any(store, dataset):
    old = dataset("old")
    decisions.decide(store, "current", {"manifest": old.manifest_key, "data_version": old.data_version}, after=0)
    assert current.move(dataset("new"), policy=1, ledger=1)


def test_a_person_may_go_back_by_a_decision_of_their_own(store, dataset):
    old = dataset("old")
    current.move(old, policy=1, ledger=1)
    current.move(dataset("new"), policy=2, ledger=2)
    value = {"manifest": old.manifest_key, "data_version": old.data_version, "policy": 2, "ledger": 2}
    decisions.decide(store, "current", value, after=2)
    assert current.read(store).work_key == "old"
