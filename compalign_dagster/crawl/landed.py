"""What lies in the landing folder: which keys are shards, which are complete, about how many pairs they hold.

Sizes, stamps and the small files that img2dataset writes beside a shard are all that is read; what is
inside a shard is not looked at here. Names and statistics files are hostile.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from compalign_dagster.crawl.shards import SUFFIXES, corpus_of, is_shard
from compalign_dagster.errors import InputError
from compalign_dagster.store import Listed, LocalStore, ObjectMissingError, Store
from compalign_dagster.store.base import checked_parts

PAIR_BYTES = 25_000  # of a pair in a tar of 256 px JPEGs, where no statistics file says how many there are
Mark = Literal["settled", "stats", "success"]

_STATISTICS_BYTES = 1 << 20  # a statistics file is about 1 kB; a longer one is not read on
_PROBED = 10_000  # objects that are looked at for one shard before a corpus counts as empty
_PASSED = 100  # folders, each a request; a landing folder that holds so many is no lost mount
_REQUESTS = 8  # at once; each is a small read
_LAST = "\U0010ffff"  # sorts behind every other character


@dataclass(frozen=True)
class Complete:
    """When a landed shard is whole.

    On a disk it must have lain unchanged for `settle_seconds`; in a bucket objects appear whole. With the
    mark "stats" its `NAME_stats.json` must be there too, with "success" a `_SUCCESS` in its folder.
    """

    settle_seconds: float = 0.0
    mark: Mark = "settled"


def usable(key: str) -> bool:
    """Whether a key can be kept in the log and asked for again: text, and no path that climbs."""
    try:
        key.encode()
        checked_parts(key)
    except (UnicodeEncodeError, InputError):
        return False
    return True


def shards(landing: Store) -> Iterator[Listed]:
    """Every shard that lies there, complete or not, in key order."""
    return (item for item in landing.list() if is_shard(item.key) and usable(item.key))


def at_root(landing: Store, after: str = "") -> Iterator[Listed]:
    """What lies beside the top-level folders and not inside them, in key order, behind `after`.

    Each folder on the way costs one listing. A folder is passed as one item of size -1, so that who
    remembers how far a listing went need not pass it again.
    """
    passed = None
    while True:
        for item in landing.list(after=after):
            folder, slash, _ = item.key.partition("/")
            if not slash:
                yield item
            elif folder != passed:  # else a name that sorts behind `_LAST`
                passed, after = folder, f"{folder}/{_LAST}"
                yield Listed(after, -1, "")
                break
        else:
            return


def is_lost(landing: Store, corpus: str) -> bool:
    """Whether a corpus has no shard at all, as when its mount is lost."""
    if any(is_shard(item.key) for item in islice(landing.list(f"{corpus}/"), _PROBED)):
        return False
    passed = 0
    for item in islice(at_root(landing), _PROBED) if corpus == corpus_of("") else ():
        passed += item.size < 0
        if is_shard(item.key) or passed == _PASSED:
            return False
    return True


def gone(landing: Store, names: Sequence[str]) -> list[str]:
    """Those of these shards that are not there, by asking for each: a listing may miss one that is being replaced."""
    if not names:
        return []
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return [name for name, there in zip(names, pool.map(landing.exists, names), strict=True) if not there]


def lost_corpora(landing: Store, names: Iterable[str]) -> InputError:
    """The error for corpora that the log has and the landing folder has not."""
    found = sorted(names)
    listed = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    return InputError(
        f"landing folder {landing.url}",
        expected=f"shards of the corpora that the batch log has: {listed}",
        found="no shard at all",
        remedy="Check that it is mounted and spelled right; nothing was removed. "
        "To remove a corpus on purpose, run land_batch with its name in `remove_corpora`.",
    )


class Inspector:
    """Says of landed shards whether they are complete and how many pairs to expect; one per look."""

    def __init__(self, landing: Store, rule: Complete, now: float) -> None:
        self._landing, self._rule, self._now = landing, rule, now
        self._marked: dict[str, bool] = {}

    def pairs(self, items: Sequence[Listed]) -> list[int | None]:
        """About how many pairs each shard holds; None for one that is not complete."""
        if not items:
            return []
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(self._pairs, items))

    def _pairs(self, item: Listed) -> int | None:
        if not self._settled(item) or (self._rule.mark == "success" and not self._succeeded(item.key)):
            return None
        body = self._statistics(item.key)
        if body is None and self._rule.mark == "stats":
            return None
        counted = _successes(body) if body else None
        return counted if counted is not None else item.size // PAIR_BYTES + 1

    def _settled(self, item: Listed) -> bool:
        if not isinstance(self._landing, LocalStore):
            return True
        changed = int(item.stamp) / 1e9
        # A clock that runs ahead must not hold a shard for ever.
        return abs(self._now - changed) >= self._rule.settle_seconds

    def _succeeded(self, key: str) -> bool:
        folder = key.rpartition("/")[0]
        if folder not in self._marked:
            self._marked[folder] = self._landing.exists(f"{folder}/_SUCCESS" if folder else "_SUCCESS")
        return self._marked[folder]

    def _statistics(self, key: str) -> bytes | None:
        stem = next(key.removesuffix(suffix) for suffix in SUFFIXES if key.endswith(suffix))
        try:
            return self._landing.read_range(f"{stem}_stats.json", 0, _STATISTICS_BYTES)
        except ObjectMissingError:
            return None


def _successes(body: bytes) -> int | None:
    """img2dataset's count of pairs in a shard; None when the file is not what it writes."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    count = value.get("successes") if isinstance(value, dict) else None
    return count if type(count) is int and count >= 0 else None
