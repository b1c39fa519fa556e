"""A version that is capped by semantic clusters verifies from the store alone, by the clusters it was made with."""

from datetime import UTC, datetime, timedelta

import pytest

from compalign_dagster import latest
from compalign_dagster.lineage.verify import verify_version
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import caps, prune
from compalign_dagster.selection.policy import Policy
from tests.support.small_clusters import small_clusters

POLICY = Policy(keep_fraction="0.6", most_per_semantic_cluster=3, most_per_domain=2)


@pytest.fixture
def clustered(small):
    return small, small_clusters(small)


def faults(small, version) -> list[str]:
    return [str(fault) for fault in verify_version(small.store, version.artifact.manifest_key).faults]


def test_it_verifies_by_its_own_clusters_whatever_clusters_came_since(clustered):
    small, clusters = clustered
    version = small.filter(POLICY)
    assert clusters.manifest_key in {source.key for source in version.artifact.inputs}
    assert set(version.capped["reason"]) == {"cluster_cap", "domain_cap"}
    assert faults(small, version) == []
    newer = small_clusters(small, 2)
    assert latest.require(small.store, "semantic_clusters").data_version == newer.data_version
    assert faults(small, version) == []
    other = small.filter(POLICY)
    assert other.artifact.manifest_key != version.artifact.manifest_key
    assert faults(small, other) == []


def test_a_version_that_a_prune_keeps_keeps_its_clusters(clustered):
    small, _ = clustered
    small.filter(keep_fraction="0.1")
    version = small.filter(POLICY)
    chosen = prune.plan(small.store, 1, now=datetime.now(UTC) + timedelta(days=2))
    assert chosen.versions
    prune.prune(small.store, chosen, Reason("ada", "space"))
    assert faults(small, version) == []


def test_the_planted_bug_of_a_cap_that_is_passed_over_is_found(clustered, monkeypatch):
    small, _ = clustered
    with monkeypatch.context() as planted:
        planted.setattr(caps, "capped", lambda lists, policy, groups, sound=caps.capped: sound(
            lists, policy.model_copy(update={"most_per_semantic_cluster": None}), groups))  # fmt: skip
        version = small.filter(POLICY)
    found = faults(small, version)
    assert any("capped.parquet" in fault for fault in found)
    assert any("dropped_by_reason" in fault for fault in found)
