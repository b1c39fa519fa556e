"""A version's work key and its decision are of the same block list, whatever happens between them."""

import pytest

from compalign_dagster import parquet
from compalign_dagster.selection import blocks, deciding, restore
from compalign_dagster.selection.policy import Policy
from compalign_dagster.versions import digest_json
from tests.support.small_version import small_store

POLICY = Policy(keep_fraction="0.5")


@pytest.fixture
def small(tmp_path):
    return small_store(tmp_path, pairs=12)


def test_a_policy_without_a_cap_on_clusters_has_the_bytes_that_it_had_without_that_field():
    asked = Policy(keep_fraction="0.3", per_corpus={"shop": "0.1"}, most_per_domain=3, most_per_duplicate_group=1)
    dumped = digest_json(asked.model_dump(mode="json"))
    assert dumped == "20dffa1234e4140406d8954f1ffb4a7ba17dc5be1ff7ac850c946102e8e8ed01"
    capped = Policy.model_validate({**asked.model_dump(mode="json"), "most_per_semantic_cluster": 7})
    assert (asked.version, capped.version) == (2, 3), "an older release refuses what it does not know"
    assert deciding.key_with({}, [], capped, {}) != deciding.key_with({}, [], asked, {})
    assert Policy.model_validate(capped.model_dump(mode="json")) == capped


def test_a_takedown_between_key_and_decision_is_of_the_next_version(small):
    rows = parquet.read(small.ledger.fetch("ledger.parquet")).to_pylist()
    before = deciding.others_of(small.store, rows, POLICY)
    first = deciding.decide(small.store, rows, POLICY, before)
    gone = first.kept(first.batches()[0])["pair_id"][0]
    listed = blocks.add(small.store, [blocks.entry("pair_id", gone, request="letter 1")])
    assert deciding.decide(small.store, rows, POLICY, before).facts["dropped_by_reason"].get("takedown") is None
    after = deciding.others_of(small.store, rows, POLICY)
    assert deciding.key_with(before, rows, POLICY, {}) != deciding.key_with(after, rows, POLICY, {})
    assert not list(restore.blocked_pairs(deciding.decide(small.store, rows, POLICY, after), listed))
