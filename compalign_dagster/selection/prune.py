"""Old versions of the dataset, ranked lists that only they need, matches of older block lists: their removal.

What belongs here: the choice, the record of it, the order of deletion. What does not: anything that was landed,
indexed, scored or decided; that is never pruned.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocked, blocks, ranked, versions
from compalign_dagster.store import Store

DECISION = "prune"
YOUNG = timedelta(hours=24)
"""What was published more recently stays: a run may be about to refer to it."""

_READERS = ("eval_report",)  # unpartitioned kinds whose artifacts are made from versions
_NAMED = re.compile(rf"{versions.KIND}/[^/\"]+/manifest\.json")


@dataclass(frozen=True)
class Plan:
    """What a prune removes, and the versions it keeps."""

    versions: list[Artifact]  # of kind filtered_dataset, oldest first
    lists: list[Artifact]  # of kind ranked_pairs, by batch, then blocked_pairs
    kept: list[Artifact]  # versions

    @property
    def size(self) -> int:
        """Bytes that it frees."""
        return sum(
            entry["bytes"] for item in (*self.versions, *self.lists) for entry in item.manifest["files"].values()
        )


def plan(store: Store, keep: int, spare: Iterable[str] = (), *, now: datetime | None = None) -> Plan:
    """What may go when the `keep` newest versions stay, and those called `spare` (see `versions.find`).

    Also kept: the current version, versions that one of the last `keep` decisions of any name or the last `keep`
    evaluation reports name, whatever is younger than `YOUNG`, every list that a kept version refers to, and what is
    remembered of the block list in force.
    """
    if keep < 1:
        raise InputError("prune", expected="to keep at least 1 version", found=str(keep), remedy="Give --keep 5.")
    young = (now or datetime.now(UTC)) - YOUNG
    published = [(_age(item), item) for item in _artifacts(store, versions.KIND)]
    newest = [item.artifact.manifest_key for item in versions.history(store)][-keep:]
    spared = [versions.find(store, name).manifest_key for name in spare]
    named = {*newest, *spared, *_named_by_decisions(store, keep), *_named_by_readers(store, keep)}
    kept = [item for age, item in published if age > young or item.manifest_key in named]
    staying = {item.manifest_key for item in kept}
    needed = {source.key for item in kept for source in item.inputs if source.kind == ranked.KIND}
    block_list = blocks.in_force(store)
    return Plan(
        versions=[
            item for _, item in sorted(published, key=lambda pair: pair[0]) if item.manifest_key not in staying
        ],
        lists=[
            item
            for item in _artifacts(store, ranked.KIND)
            if item.manifest_key not in needed and _age(item) <= young
        ]
        + [
            item
            for item in _artifacts(store, blocked.KIND)
            if block_list is None or item.inputs[0].key != block_list.manifest_key
            if _age(item) <= young
        ],
        kept=kept,
    )  # fmt: skip


def prune(store: Store, chosen: Plan, reason: Reason) -> decisions.Decision:
    """Record what goes, then remove it, and what an interrupted prune before this one left; the record.

    Versions go before lists, and of each artifact the manifest before its files: whatever happens between, no
    version that is there lacks a list, and what is left of the others is garbage that the next prune removes.
    """
    value = {
        "versions": [{"manifest": item.manifest_key, "data_version": item.data_version} for item in chosen.versions],
        "lists": [{"manifest": item.manifest_key, "data_version": item.data_version} for item in chosen.lists],
        "bytes": chosen.size,
        "by": reason.by,
        "why": reason.why,
    }
    decided = decisions.move(store, DECISION, lambda now: value if now is None or now.value != value else None)
    assert decided is not None, "a value follows whatever there is"
    for item in (*chosen.versions, *chosen.lists):
        _remove(store, item.path)
    for path in _interrupted(store):
        _remove(store, path)
    return decided


def _remove(store: Store, path: str) -> None:
    store.delete(f"{path}/manifest.json")
    for item in list(store.list(f"{path}/")):
        store.delete(item.key)


def _interrupted(store: Store) -> Iterator[str]:
    """Folders of artifacts that a prune has named, that have no manifest and are not empty."""
    for decision in decisions.history(store, DECISION):
        for entry in (*decision.value["versions"], *decision.value["lists"]):
            path = entry["manifest"].removesuffix("/manifest.json")
            if next(store.list(f"{path}/"), None) and not store.exists(entry["manifest"]):
                yield path


def _artifacts(store: Store, kind: str) -> list[Artifact]:
    keys = [item.key for item in store.list(f"{kind}/") if item.key.endswith("/manifest.json")]
    found = (artifacts.load(store, key) for key in keys)
    return [item for item in found if item is not None and item.kind == kind]


def _age(item: Artifact) -> datetime:
    return datetime.fromisoformat(item.manifest["created"])


def _named_by_decisions(store: Store, last: int) -> Iterator[str]:
    """Versions that the last decisions of every name speak of, `latest` excepted: that is the order of making."""
    keys = (item.key for item in store.list("decisions/") if not item.key.startswith(("decisions/latest/", _OWN)))
    for _, of_name in groupby(keys, key=lambda key: key.rpartition("/")[0]):
        for key in list(of_name)[-last:]:
            yield from _NAMED.findall(store.read(key).decode(errors="replace"))


def _named_by_readers(store: Store, last: int) -> Iterable[str]:
    made = (report for kind in _READERS for report in latest.history(store, kind)[-last:])
    return [item.key for report in made for item in report.inputs if item.kind == versions.KIND]


_OWN = f"decisions/{DECISION}/"
