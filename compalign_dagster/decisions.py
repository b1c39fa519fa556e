"""The small versioned facts that people decide: promoted model, policy in force, `current`, batch log.

Each is a numbered sequence `decisions/<name>/<version>.json`, put only if absent: versions are
contiguous, every version has one winner, nothing is overwritten and history is the folder itself.
"""

import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Listed, Store
from compalign_dagster.versions import canonical_json

_ATTEMPTS = 20  # writers of one name are few; losing this often means something else is wrong
_REMEMBERED_BYTES = 32 << 20  # of JSON, per process; a batch of a thousand shards takes about 0.2 MB
_REMEMBERED_NAMES = 10_000
_LONGEST_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Decision:
    """One version of a decided fact. Versions count from 1. The value is shared: read it, never write it."""

    name: str
    version: int
    value: dict[str, Any]
    decided: str  # ISO 8601, UTC


class DecidedMeanwhileError(CompalignError):
    """Somebody else has decided the version that was to be written."""


def history(store: Store, name: str) -> list[Decision]:
    """Every version, oldest first, without a gap.

    A folder that is listed while versions are added may show the newest without the one before it.
    """
    for _ in range(_ATTEMPTS):
        found = [_read(store, name, item) for item in store.list(f"decisions/{name}/")]
        if [decision.version for decision in found] == list(range(1, len(found) + 1)):
            return found
    raise CompalignError(
        f"decision {name} in {store.url}",
        expected="versions 1, 2, 3 and so on without a gap",
        found=f"{len(found)} versions, the newest {found[-1].version}",
        remedy="Restore what is missing: nothing of this project deletes it.",
    )


def current(store: Store, name: str) -> Decision | None:
    """The newest version, or None before the first."""
    known = _newest.get((store.url, name))
    found = list(store.list(f"decisions/{name}/", after=known.key[:-1] if known else ""))
    if known and found[:1] != [known]:  # the store was wiped
        found = list(store.list(f"decisions/{name}/"))
    if not found:
        return None
    if len(_newest) >= _REMEMBERED_NAMES:
        _newest.clear()
    _newest[store.url, name] = found[-1]
    return _read(store, name, found[-1])


def decide(store: Store, name: str, value: Mapping[str, Any], *, after: int) -> Decision:
    """Add the version that follows `after` (0 for the first).

    Raises:
        DecidedMeanwhileError: when somebody else was faster.
    """
    version = after + 1
    decided = datetime.now(UTC).isoformat(timespec="seconds")
    body = canonical_json({"version": version, "value": dict(value), "decided": decided})
    if not store.put_new(f"decisions/{name}/{version:08d}.json", body):
        raise DecidedMeanwhileError(
            f"decision {name} version {version}",
            expected="nobody else to have decided meanwhile",
            found="that version exists",
            remedy="Look at the newest version and decide again.",
        )
    return Decision(name, version, dict(value), decided)


def move(store: Store, name: str, choose: Callable[[Decision | None], Mapping[str, Any] | None]) -> Decision | None:
    """Decide by what is newest, again and again until nobody else was faster; the version in force afterwards.

    `choose` gets the newest version (None before the first) and returns the value to follow it, or None
    to leave it.
    """
    for attempt in range(_ATTEMPTS):
        now = current(store, name)
        value = choose(now)
        if value is None:
            return now
        try:
            return decide(store, name, value, after=now.version if now else 0)
        except DecidedMeanwhileError:
            time.sleep(random.uniform(0, min(0.001 * 2**attempt, _LONGEST_WAIT_SECONDS)))
    raise CompalignError(
        f"decision {name} in {store.url}",
        expected="to be written within a few attempts",
        found=f"{_ATTEMPTS} lost races",
        remedy="Check what else writes to this store.",
    )


class _Memory:
    """Decisions that this process has read, the least recently used forgotten first.

    They are immutable, and a store that was wiped and filled again has other stamps.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._decisions: OrderedDict[tuple[str, Listed], Decision] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, url: str, item: Listed) -> Decision | None:
        with self._lock:
            found = self._decisions.get((url, item))
            if found is not None:
                self._decisions.move_to_end((url, item))
            return found

    def put(self, url: str, item: Listed, decision: Decision) -> None:
        with self._lock:
            if (url, item) not in self._decisions:
                self._decisions[url, item] = decision
                self._held += item.size
            while self._held > self._most:
                (_, oldest), _ = self._decisions.popitem(last=False)
                self._held -= oldest.size


_memory = _Memory(_REMEMBERED_BYTES)
_newest: dict[tuple[str, str], Listed] = {}  # by store and fact, as of the last look: where to look on from


def _read(store: Store, name: str, item: Listed) -> Decision:
    decision = _memory.get(store.url, item)
    if decision is None:
        body = json.loads(store.read(item.key))
        decision = Decision(name, body["version"], body["value"], body["decided"])
        _memory.put(store.url, item, decision)
    return decision
