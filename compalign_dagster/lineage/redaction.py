"""Redactions: which files are no longer the bytes that their manifest names, because somebody asked for that.

What belongs here: the record, written before a file is touched, and what it explains. What does not: what is taken
out of a file (`purge.py`), who asked for what (`takedown.py`).

A record is a numbered fact like any other decision: it is never overwritten, and history is the folder itself.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store

DECISION = "redactions"


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

    @property
    def rows(self) -> int:
        """Rows or members that were emptied."""
        return sum(change.rows for change in self.changes)

    def explains(self, stated: str, found: str | None) -> bool:
        """Whether a file that its manifest calls `stated` may have the SHA-256 `found` (None: be gone).

        Each change must start from what the one before has left: bytes of which no record tells are not explained.
        """
        at: str | None = stated
        for change in self.changes:
            if at == change.was:
                at = change.now
        return at == found


def redactions(store: Store) -> dict[str, Redaction]:
    """Every redacted file by its key; of a landed shard, by the URL that its index names as input."""
    found: dict[str, Redaction] = {}
    for fact in decisions.history(store, DECISION):
        for entry in fact.value["changes"]:
            change, request = Change(**entry), fact.value["request"]
            before = found.get(change.key, Redaction(change.key, (), (), ()))
            found[change.key] = Redaction(
                change.key,
                (*before.changes, change),
                (*before.requests, request),
                (*before.decided, fact.decided),
            )
    return found


def record(store: Store, changes: Iterable[Change], *, request: str) -> None:
    """Write down what is about to be done to files; nothing when that is nothing.

    A purge that was killed and runs again writes down only what its first run had not reached.
    """
    known = redactions(store)
    new = [
        asdict(change)
        for change in sorted(set(changes))
        if change.key not in known or change not in known[change.key].changes
    ]
    if not new:
        return
    made = decisions.move(store, DECISION, lambda _: {"request": request, "changes": new})
    if made is None:
        raise CompalignError(
            f"redactions in {store.url}", expected="a record", found="none", remedy="Run the purge again."
        )
