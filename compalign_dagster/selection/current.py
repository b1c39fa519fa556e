"""`current`: the filtered dataset that readers should use, a numbered fact that moves last and never back by itself.

A slow run under an older policy or block list, or on an older ledger, may end after a newer one. Its dataset is
published like any other, but `current` stays. Going back is for people (`restore`): a new decision with an
old value. It holds: no run moves `current` away from what a person restored, until a person adopts another policy or
lets go of it (`follow`), or until the block list changes, for what has to go must not stay current.
"""

import logging
from collections.abc import Callable
from typing import Any

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocks
from compalign_dagster.store import Store

_NAME = "current"

log = logging.getLogger(__name__)


def move(dataset: Artifact, *, policy: int, ledger: int) -> bool:
    """Make this the current dataset unless it would go back, and return whether it is the current one.

    `policy` and `ledger` are the versions, as decided facts, of what the dataset was made by and from;
    going back is an older one of either, or of the block list that the dataset names. Nothing is written when
    neither it nor they have changed; the same dataset by a newer policy is a new version, so that what ran in
    between cannot replace it.
    """
    order = {"policy": policy, "ledger": ledger, "blocks": blocks.number_of(dataset)}
    value = {
        "manifest": dataset.manifest_key,
        "data_version": dataset.data_version,
        "manifest_sha256": dataset.manifest_sha256,
        **order,
    }

    def choose(now: decisions.Decision | None) -> dict[str, Any] | None:
        stays = now is not None and (now.value == value or _goes_back(now, order) or _is_held(now, order))
        return None if stays else value

    now = decisions.move(dataset.store, _NAME, choose)
    assert now is not None, "there is a current dataset, this one or another that kept it from moving"
    moved = bool(now.value["manifest"] == dataset.manifest_key)
    if not moved:
        why = "a person restored it" if now.value.get("held") else "it is newer"
        log.warning("`current` stays at %s and not %s: %s", now.value["manifest"], dataset.manifest_key, why)
    return moved


def restore(dataset: Artifact, reason: Reason, *, policy: int, block_list: int) -> decisions.Decision:
    """Make this the current dataset by a decision of a person, whatever its age; it is held until `follow`.

    `policy` is the number of the policy in force, `block_list` that of the block list which the dataset was looked
    through by: a dataset by a newer one of either ends the hold too. Raises `InputError` when one is current already.
    """

    def choose(now: decisions.Decision | None) -> dict[str, Any]:
        before = now.value if now else {}
        if before.get("blocks", 0) > block_list:
            raise InputError(
                "restore",
                expected="the block list to stay as it was while it was looked through",
                found="a newer one, by which the current dataset was made",
                remedy="Restore again: the newer block list is looked at then.",
            )
        return {
            "manifest": dataset.manifest_key,
            "data_version": dataset.data_version,
            "manifest_sha256": dataset.manifest_sha256,
            "policy": max(policy, before.get("policy", 0)),
            "ledger": before.get("ledger", 0),
            "blocks": block_list,
            "held": True,
            **_told("restore", reason, before),
        }

    return _decided(dataset.store, choose)


def follow(store: Store, reason: Reason) -> decisions.Decision | None:
    """Let runs move `current` again; it moves with the next one. None where nothing was held."""

    def choose(now: decisions.Decision | None) -> dict[str, Any] | None:
        if now is None or not now.value.get("held"):
            return None
        return {**now.value, "held": False, **_told("follow", reason, now.value)}

    before = decisions.current(store, _NAME)
    after = decisions.move(store, _NAME, choose)
    return after if after != before else None


def history(store: Store) -> list[decisions.Decision]:
    """Every decision about `current`, oldest first."""
    return decisions.history(store, _NAME)


def read(store: Store) -> Artifact | None:
    """The current dataset, or None before the first."""
    now = decisions.current(store, _NAME)
    return artifacts.load(store, now.value["manifest"]) if now else None


def block_list(store: Store) -> int | None:
    """The number of the block list that the current dataset was made by, or looked through by; None without one."""
    now = decisions.current(store, _NAME)
    return now.value.get("blocks", 0) if now else None


def _told(action: str, reason: Reason, before: dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "by": reason.by, "why": reason.why, "replaces": before.get("manifest")}


def _decided(store: Store, choose: Callable[[decisions.Decision | None], dict[str, Any]]) -> decisions.Decision:
    found = decisions.move(store, _NAME, choose)
    assert found is not None, "a value follows whatever there is"
    return found


def _is_held(now: decisions.Decision, order: dict[str, int]) -> bool:
    """Whether a person's choice keeps a run's dataset from becoming current."""
    ends = any(order[name] > now.value.get(name, 0) for name in ("policy", "blocks"))
    return bool(now.value.get("held")) and not ends


def _goes_back(now: decisions.Decision, order: dict[str, int]) -> bool:
    return any(version < now.value.get(name, 0) for name, version in order.items())
