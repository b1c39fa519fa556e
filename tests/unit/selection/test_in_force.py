"""The policy in force is seeded once, also by runs that start together."""

import threading
from decimal import Decimal

import pytest

from compalign_dagster import decisions
from compalign_dagster.selection.in_force import adopt, in_force
from compalign_dagster.selection.policy import Policy
from compalign_dagster.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_of_runs_that_start_together_on_a_new_store_one_seeds_the_policy_and_all_go_on(store):
    found, start = [], threading.Barrier(8)

    def begin():
        start.wait()
        found.append(in_force(store, Policy(keep_fraction=Decimal("0.3"))))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(entry.version, entry.policy.keep_fraction) for entry in found] == [(1, Decimal("0.3"))] * 8
    assert len(decisions.history(store, "selection_policy")) == 1


def test_the_first_policy_of_the_settings_does_not_replace_what_was_decided(store):
    adopt(store, Policy(keep_fraction=Decimal("0.1")))
    assert in_force(store, Policy(keep_fraction=Decimal("0.3"))).policy.keep_fraction == Decimal("0.1")


def test_adopting_what_is_in_force_writes_nothing_and_another_is_a_new_version(store):
    for fraction, version in (("0.1", 1), ("0.1", 1), ("0.2", 2), ("0.1", 3)):
        assert adopt(store, Policy(keep_fraction=Decimal(fraction))).version == version
