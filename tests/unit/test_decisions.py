"""Decided facts: contiguous versions, one winner each, nothing overwritten."""

import threading

import pytest

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_nothing_is_decided_at_first(store):
    assert decisions.current(store, "policy") is None
    assert decisions.history(store, "policy") == []


def test_versions_count_from_one_and_the_newest_is_current(store):
    first = decisions.decide(store, "policy", {"keep": "0.3"}, after=0)
    second = decisions.decide(store, "policy", {"keep": "0.1"}, after=1)
    assert (first.version, second.version) == (1, 2)
    assert decisions.current(store, "policy") == second
    assert decisions.history(store, "policy") == [first, second]
    assert first.decided.endswith("+00:00")


def test_order_holds_beyond_nine_versions(store):
    for version in range(12):
        decisions.decide(store, "policy", {"at": version}, after=version)
    assert [decision.value["at"] for decision in decisions.history(store, "policy")] == list(range(12))
    assert decisions.current(store, "policy").version == 12


def test_facts_whose_names_start_alike_do_not_mix(store):
    decisions.decide(store, "policy", {"of": "policy"}, after=0)
    decisions.decide(store, "policy-b", {"of": "policy-b"}, after=0)
    assert [decision.value["of"] for decision in decisions.history(store, "policy")] == ["policy"]


def test_deciding_after_an_old_version_fails_and_changes_nothing(store):
    decisions.decide(store, "policy", {"keep": 1}, after=0)
    with pytest.raises(CompalignError, match="decide again"):
        decisions.decide(store, "policy", {"keep": 2}, after=0)
    assert decisions.current(store, "policy").value == {"keep": 1}


def test_of_many_who_decide_at_once_exactly_one_wins(store):
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def decide(who: int) -> None:
        start.wait()
        try:
            decisions.decide(store, "model", {"who": who}, after=0)
            outcomes.append("won")
        except CompalignError:
            outcomes.append("lost")

    threads = [threading.Thread(target=decide, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    assert len(decisions.history(store, "model")) == 1
