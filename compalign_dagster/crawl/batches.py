"""The batch log: which shards the crawl is made of, as numbered decisions in the store.

A batch is a commit to the crawl: shards added, superseded by a new delivery, removed. The log is the
truth; sensors and partitions are views of it. What does not belong here: reading shards.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.store import Listed, LocalStore, Store

NAME = "batches"
_ATTEMPTS = 20  # two sealers race at most now and then; losing this often means something else is wrong

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardStamp:
    """A delivery of a shard: its name, its size in bytes, and a stamp that changes when it does."""

    shard: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Batch:
    """One entry of the log. `superseded` holds the new stamps of shards that were delivered again."""

    key: str
    added: tuple[ShardStamp, ...]
    superseded: tuple[ShardStamp, ...]
    removed: tuple[str, ...]


def read_log(store: Store) -> list[Batch]:
    """Every batch, oldest first."""
    return [_batch(decision) for decision in decisions.history(store, NAME)]


def require(store: Store, key: str) -> Batch:
    """The batch of this key.

    Raises:
        InputError: when the log has no such batch.
    """
    for batch in read_log(store):
        if batch.key == key:
            return batch
    raise InputError(
        f"batch {key!r} in {store.url}",
        expected="a sealed batch of the log",
        found="no such batch",
        remedy="Land it first (job `land_batch`), or choose one that the log has.",
    )


def live_shards(batches: Iterable[Batch]) -> dict[str, tuple[str, ShardStamp]]:
    """The crawl after these batches: shard name -> (key of the batch that brought it, its stamp)."""
    live: dict[str, tuple[str, ShardStamp]] = {}
    for batch in batches:
        for name in batch.removed:
            live.pop(name, None)
        live.update({item.shard: (batch.key, item) for item in (*batch.added, *batch.superseded)})
    return live


def seal(store: Store, landing: Store, *, max_shards: int, settled_seconds: float, now: float) -> list[Batch]:
    """Compare the landing folder with the log and seal what differs into new batches.

    Only settled `*.tar` count: a file changed less than `settled_seconds` before `now` (seconds since
    the epoch) waits; in a bucket objects appear whole and never wait. Hidden, `.part` and `.tmp` files
    are no shards. A batch lists at most `max_shards` shards; removals are in the first one.

    Raises:
        InputError: when the landing folder holds no shard at all while the log has live ones. A lost
            mount must not read as a mass removal.
    """
    for _ in range(_ATTEMPTS):
        log_before = decisions.history(store, NAME)
        changes = _changes(landing, live_shards(map(_batch, log_before)), settled_seconds, now)
        sealed: list[Batch] = []
        try:
            for value in _values(*changes, max_shards):
                version = len(log_before) + len(sealed)
                sealed.append(_batch(decisions.decide(store, NAME, value, after=version)))
        except CompalignError:
            if sealed:
                return sealed  # somebody else seals the rest, or the next call does
            continue  # somebody else was faster: compare again
        for batch in sealed:
            counts = f"{len(batch.added)} added, {len(batch.superseded)} superseded, {len(batch.removed)} removed"
            log.info("sealed %s: %s", batch.key, counts)
        return sealed
    raise CompalignError(
        f"batch log in {store.url}",
        expected="to be written within a few attempts",
        found=f"{_ATTEMPTS} lost races",
        remedy="Check what else seals batches there.",
    )


def _changes(
    landing: Store, live: dict[str, tuple[str, ShardStamp]], settled_seconds: float, now: float
) -> tuple[list[ShardStamp], list[ShardStamp], list[str]]:
    """What was added, delivered again and removed, each sorted by name."""
    landed = {item.key: item for item in landing.list() if _is_shard(item.key)}
    if live and not landed:
        raise InputError(
            f"landing folder {landing.url}",
            expected=f"the {len(live)} shards of the batch log, or some of them",
            found="no shard at all",
            remedy="Check that it is mounted and spelled right; to empty a crawl, use a new store.",
        )
    added: list[ShardStamp] = []
    superseded: list[ShardStamp] = []
    for name, item in sorted(landed.items()):
        stamp = ShardStamp(name, item.size, item.stamp)
        if name in live and live[name][1] == stamp:
            continue
        if _settled(landing, item, settled_seconds, now):
            (superseded if name in live else added).append(stamp)
    return added, superseded, sorted(live.keys() - landed.keys())


def _is_shard(key: str) -> bool:
    return key.endswith(".tar") and not any(part.startswith(".") for part in key.split("/"))


def _settled(landing: Store, item: Listed, settled_seconds: float, now: float) -> bool:
    if not isinstance(landing, LocalStore):
        return True
    changed = int(item.stamp) / 1e9
    return abs(now - changed) >= settled_seconds  # a clock that runs ahead must not hold a shard for ever


def _values(
    added: list[ShardStamp], superseded: list[ShardStamp], removed: list[str], max_shards: int
) -> Iterator[dict]:
    """Log entries for these changes, at most `max_shards` shards each."""
    again = {item.shard for item in superseded}
    listed = sorted([*added, *superseded], key=lambda item: item.shard)
    parts = [listed[at : at + max_shards] for at in range(0, len(listed), max_shards)]
    if removed and not parts:
        parts = [[]]
    for at, part in enumerate(parts):
        yield {
            "added": [vars(item) for item in part if item.shard not in again],
            "superseded": [vars(item) for item in part if item.shard in again],
            "removed": removed if at == 0 else [],
        }


def _batch(decision: decisions.Decision) -> Batch:
    value = decision.value
    return Batch(
        key=f"batch-{decision.version:05d}",
        added=tuple(ShardStamp(**item) for item in value["added"]),
        superseded=tuple(ShardStamp(**item) for item in value["superseded"]),
        removed=tuple(value["removed"]),
    )
