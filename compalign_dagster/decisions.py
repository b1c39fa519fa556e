"""The small versioned facts that people decide: promoted model, policy in force, `current`, batch log.

Each is a numbered sequence `decisions/<name>/<version>.json`, put only if absent: versions are
contiguous, every version has one winner, nothing is overwritten and history is the folder itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json


@dataclass(frozen=True)
class Decision:
    """One version of a decided fact. Versions count from 1."""

    name: str
    version: int
    value: dict[str, Any]
    decided: str  # ISO 8601, UTC


def history(store: Store, name: str) -> list[Decision]:
    """Every version, oldest first."""
    return [_read(store, name, item.key) for item in store.list(f"decisions/{name}/")]


def current(store: Store, name: str) -> Decision | None:
    """The newest version, or None before the first."""
    keys = [item.key for item in store.list(f"decisions/{name}/")]
    return _read(store, name, keys[-1]) if keys else None


def decide(store: Store, name: str, value: Mapping[str, Any], *, after: int) -> Decision:
    """Add the version that follows `after` (0 for the first); fails when somebody else was faster."""
    version = after + 1
    decided = datetime.now(UTC).isoformat(timespec="seconds")
    body = canonical_json({"version": version, "value": dict(value), "decided": decided})
    if not store.put_new(f"decisions/{name}/{version:08d}.json", body):
        raise CompalignError(
            f"decision {name} version {version}",
            expected="nobody else to have decided meanwhile",
            found="that version exists",
            remedy="Look at the newest version and decide again.",
        )
    return Decision(name, version, dict(value), decided)


def _read(store: Store, name: str, key: str) -> Decision:
    body = json.loads(store.read(key))
    return Decision(name, body["version"], body["value"], body["decided"])
