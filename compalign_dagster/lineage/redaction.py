"""Redactions: which files are no longer the bytes that their manifest names, because somebody asked for that.

What belongs here: the record, written before a file is touched, and what it explains. What does not: what is taken
out of a file (`purge.py`), who asked for what (`takedown.py`).

A record is a numbered fact like any other decision: it is never overwritten, and history is the folder itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from compalign_dagster import decisions
from compalign_dagster.decisions import Decision
from compalign_dagster.errors import CompalignError
from compalign_dagster.selection.blocks import Entry
from compalign_dagster.store import Store

DECISION = "redactions"
TAKEDOWNS = "takedowns"  # the record of requests and purges, of which `takedown.py` says more


@dataclass(frozen=True, order=True)
class Change:
    """What is done to one file: `now` is the SHA-256 of its bytes afterwards, None when it is deleted."""

    key: str  # store key; of a landed shard the URL that its index names as input
    was: str  # SHA-256 of its bytes before
    now: str | None
    rows: int  # rows or members that are emptied; of a deleted page 0
    place: Literal["store", "landing"] = "store"


@dataclass(frozen=True)
class Redaction:
    """All that was done to one file on request, oldest first."""

    key: str
    changes: tuple[Change, ...]
    requests: tuple[str, ...]  # names of the takedowns, in the same order
    decided: tuple[str, ...]  # ISO 8601, UTC, in the same order

    @classmethod
    def none(cls, key: str) -> "Redaction":
        """Of a file that nobody asked to change."""
        return cls(key, (), (), ())

    def explains(self, stated: str, found: str | None) -> bool:
        """Whether a file that its manifest calls `stated` must have the SHA-256 `found` (None: be gone).

        That is what the last change leaves that starts from bytes which the file can have had: what it was before is
        not explained, nor are bytes of which no record tells.
        """
        return self._states(stated)[-1] == found

    def comes_of(self, stated: str, found: str) -> bool:
        """Whether the bytes may be what a purge finds that goes on: `stated`, or what any change made of it."""
        return found in self._states(stated)

    def _states(self, stated: str) -> list[str | None]:
        """Every state that a file can have had. A change that was recorded and never made is one of them too."""
        found: list[str | None] = [stated]
        for change in self.changes:
            if change.was in found:
                found.append(change.now)
        return found


def redactions(store: Store) -> dict[str, Redaction]:
    """Every redacted file by its key; of a landed shard, by the URL that its index names as input."""
    found: dict[str, Redaction] = {}
    for fact in decisions.history(store, DECISION):
        for entry in fact.value["changes"]:
            change, request = Change(**entry), fact.value["request"]
            before = found.get(change.key, Redaction.none(change.key))
            found[change.key] = Redaction(
                change.key,
                (*before.changes, change),
                (*before.requests, request),
                (*before.decided, fact.decided),
            )
    return found


def in_force(takedowns: Iterable[Decision]) -> set[Entry]:
    """The entries of requests that were not withdrawn since, and of every purge: that cannot be withdrawn."""
    found: set[Entry] = set()
    destroyed: set[Entry] = set()
    for fact in takedowns:
        new = {Entry(**item) for item in fact.value.get("entries", ())}
        destroyed |= new if fact.value.get("action") == "purge" else set()
        gone = fact.value.get("withdraws")
        found = {item for item in found | new if item in destroyed or item.request != gone}
    return found


def unfounded(store: Store) -> Iterator[tuple[str, str]]:
    """Key and request of every record of redactions that no purge on record has ordered."""
    ordered = {
        name
        for fact in decisions.history(store, TAKEDOWNS)
        if fact.value.get("action") == "purge"
        for item in fact.value["entries"]
        for name in item["request"].split(", ")
    }
    for fact in decisions.history(store, DECISION):
        request = str(fact.value["request"])
        if not set(request.split(", ")) <= ordered:  # several requests are one name
            yield f"decisions/{DECISION}/{fact.version:08d}.json", request


def record(store: Store, changes: Iterable[Change], *, request: str) -> None:
    """Write down what is about to be done to files; nothing when that is nothing.

    A purge that was killed and runs again writes down only what is not the last that was written of a file.
    """
    known = redactions(store)
    new = [
        asdict(change)
        for change in sorted(set(changes))
        if change.key not in known or change != known[change.key].changes[-1]
    ]
    if not new:
        return
    made = decisions.move(store, DECISION, lambda _: {"request": request, "changes": new})
    if made is None:
        raise CompalignError(
            f"redactions in {store.url}", expected="a record", found="none", remedy="Run the purge again."
        )
