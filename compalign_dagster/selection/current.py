"""`current`: the filtered dataset that readers should use, a numbered fact that moves last and never back by itself.

A slow run under an older policy, or on an older ledger, may end after a newer one. Its dataset is
published like any other, but `current` stays. Going back is for people: a new decision with an old value.
"""

import logging
from typing import Any

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.store import Store

_NAME = "current"

log = logging.getLogger(__name__)


def move(dataset: Artifact, *, policy: int, ledger: int) -> bool:
    """Make this the current dataset unless it would go back, and return whether it is the current one.

    `policy` and `ledger` are the versions, as decided facts, of what the dataset was made by and from;
    going back is an older one of either. Nothing is written when neither it nor they have changed; the
    same dataset by a newer policy is a new version, so that what ran in between cannot replace it.
    """
    order = {"policy": policy, "ledger": ledger}
    value = {"manifest": dataset.manifest_key, "data_version": dataset.data_version, **order}

    def choose(now: decisions.Decision | None) -> dict[str, Any] | None:
        stays = now is not None and (now.value == value or _goes_back(now, order))
        return None if stays else value

    now = decisions.move(dataset.store, _NAME, choose)
    assert now is not None, "there is a current dataset, this one or another that kept it from moving"
    moved = bool(now.value["manifest"] == dataset.manifest_key)
    if not moved:
        log.warning("`current` stays at %s, which is newer than %s", now.value["manifest"], dataset.manifest_key)
    return moved


def read(store: Store) -> Artifact | None:
    """The current dataset, or None before the first."""
    now = decisions.current(store, _NAME)
    return artifacts.load(store, now.value["manifest"]) if now else None


def _goes_back(now: decisions.Decision, order: dict[str, int]) -> bool:
    return any(version < now.value.get(name, 0) for name, version in order.items())
