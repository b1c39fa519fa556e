"""Going back to a version by a decision of a person: what must hold of it first.

What belongs here: the questions. What does not: the pointer itself and what keeps it (`current.py`).
"""

import io
from collections.abc import Iterator

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocks, current, versions
from compalign_dagster.selection.select import OCCURRENCE
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store

_SHOWN = 3


def restore(store: Store, name: str, reason: Reason, *, policy: int) -> decisions.Decision:
    """Make the version called `name` (see `versions.resolve`) current, and hold it there.

    `policy` is the number of the policy in force. Raises `InputError` for a version that lost one of its lists or
    that still keeps pairs which the block list names by now, `CompalignError` for one whose bytes were altered.
    """
    artifact = versions.find(store, name)
    artifact.verify()
    version = Version.open(artifact)
    _require_lists(version)
    listed, number = blocks.numbered(store)
    _require_none_blocked(version, listed)
    return current.restore(version.artifact, reason, policy=policy, block_list=number)


def blocked_pairs(version: Version, block_list: Artifact | None) -> Iterator[tuple[str, str]]:
    """(pair_id, reason) of every kept pair that a block list names; one shard's index is in memory at a time."""
    store, listed = version.store, blocks.entries(block_list)
    if not listed.num_rows:
        return
    for batch in version.batches():
        keys = version.shard_keys.filter(batch=batch)["pairs_key"]
        hits = blocks.matches((io.BytesIO(store.read(key)) for key in keys), listed)
        if hits.height:
            kept = version.kept(batch, ["pair_id", *OCCURRENCE]).select("pair_id", *OCCURRENCE)
            yield from kept.join(hits, on=OCCURRENCE).sort(OCCURRENCE).select("pair_id", "reason").iter_rows()


def _require_lists(version: Version) -> None:
    store = version.artifact.store
    for key, data_version in version.lists.select("list_key", "list_version").unique().sort("list_key").iter_rows():
        found = artifacts.load(store, key)
        if found is None or found.data_version != data_version:
            raise InputError(
                f"dataset version {version.artifact.work_key[:12]}",
                expected=f"its ranked list {key}",
                found="none" if found is None else f"one with other bytes ({found.data_version[:12]})",
                remedy="It was pruned or altered: materialise filtered_dataset under that version's policy again.",
            )


def _require_none_blocked(version: Version, block_list: Artifact | None) -> None:
    found = list(blocked_pairs(version, block_list))
    if found:
        shown = ", ".join(f"{pair} ({reason})" for pair, reason in found[:_SHOWN])
        raise InputError(
            f"dataset version {version.artifact.work_key[:12]}",
            expected="no pair that the block list names by now",
            found=f"{len(found)}: {shown}",
            remedy="Adopt that version's policy instead and filter again: the block list then holds.",
        )
