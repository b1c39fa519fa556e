"""What one tick sees: the landing folder against the batch log, and the batches that come of it.

The fast pass, the sweep and the sealing of a tick, within its budget. What does not belong here: failures of
the store, registration and what the tick says (`arrivals.py`).
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from compalign_dagster.crawl import landed
from compalign_dagster.crawl.batches import Batch, BatchSize, Live, ShardStamp, append, cut, stamp_of
from compalign_dagster.crawl.cursor import Cursor
from compalign_dagster.crawl.shards import corpus_of, is_shard
from compalign_dagster.decisions import DecidedMeanwhileError
from compalign_dagster.store import Listed, Store

_SLICE = 1000  # keys between two looks at the clock: a page of a bucket
_MOST_FOLDERS = 256  # that the fast pass follows, the last in key order; the sweep knows no limit
_MOST_WAITING = 200  # incomplete shards that the cursor remembers; the sweep comes back to all
_FAST_SHARE = 0.5  # of the time budget; the sweep has what is left
_SEAL_SHARE = 1.5  # of the time budget, after which no further batch is sealed


@dataclass(frozen=True)
class Rules:
    """What a tick may do. Times in seconds."""

    size: BatchSize = field(default_factory=BatchSize)
    wait: float = 0.0  # how long a batch that is not full waits for more
    complete: landed.Complete = field(default_factory=landed.Complete)
    patience: float = 3600.0  # how long an incomplete shard holds the fast pass
    sweep: float = 0.0  # least time from the start of one sweep to the start of the next
    budget: float = 20.0  # wall clock of one tick
    batches: int = 100  # sealed and registered by one tick


@dataclass
class Reach:
    """How far a pass came in a listing, and which keys it has to meet again unless they are sealed."""

    end: str  # last key handled
    whole: bool = False  # the listing ended
    stops: dict[str, str] = field(default_factory=dict)  # key -> the key listed before it

    def position(self, sealed: Collection[str]) -> str:
        """The last key that needs no second look."""
        return min([self.end, *(before for key, before in self.stops.items() if key not in sealed)])


class Look:
    """One tick's look at the landing folder."""

    def __init__(
        self,
        landing: Store,
        cursor: Cursor,
        live: Live,
        rules: Rules,
        now: float,
        elapsed: Callable[[], float],
        room: int,
    ) -> None:
        self._landing, self._cursor, self._live, self._rules = landing, cursor, live, rules
        self._now, self._elapsed, self._room = now, elapsed, max(room, 0)
        self._inspector = landed.Inspector(landing, rules.complete, now)
        self._found: dict[str, ShardStamp | None] = {}  # what the log does not say
        self._pairs: dict[str, int] = {}
        self._sealed: set[str] = set()
        self._waiting = {key: min(seen, now) for key, seen in cursor.waiting.items()}
        self._reaches: dict[str, Reach] = {}  # of the fast pass, by folder
        self._swept, self._reach = cursor.swept, None if cursor.swept_to is None else Reach(cursor.swept_to)
        self._folders: list[str] = list(cursor.positions)
        self._unusable: list[str] = []
        self._probed = {corpus: landed.is_lost(landing, corpus) for corpus in cursor.lost}
        if self._probed:
            corpora = {corpus_of(name) for name in live}
            self._probed = {corpus: lost for corpus, lost in self._probed.items() if corpus in corpora}

    @property
    def lost(self) -> list[str]:
        """Corpora of the log that have no shard left."""
        return sorted(corpus for corpus, lost in self._probed.items() if lost)

    def fast(self) -> None:
        """List behind the last position of every folder."""
        if self._full():
            return
        self._folders = ["", *deque(self._landing.folders(), maxlen=_MOST_FOLDERS)]
        for folder in self._folders:
            if self._full() or self._spent(_FAST_SHARE):
                return
            start = self._cursor.positions.get(folder, "")
            listing = self._landing.list(folder, after=start) if folder else landed.at_root(self._landing, after=start)
            self._reaches[folder] = reach = Reach(start)
            for part in self._parts(listing, reach, _FAST_SHARE):
                self._compare(part, reach, patient=True)

    def sweep(self) -> None:
        """Compare everything with the log, from where the last tick stopped."""
        if self._reach is None:
            if 0 <= self._now - self._swept < self._rules.sweep:
                return
            self._reach, self._swept = Reach(""), self._now
        names = sorted({*self._live, *self._waiting})
        for part in self._parts(self._landing.list(after=self._reach.end), self._reach, 1.0):
            self._compare(part, self._reach, patient=False)
            if not self._miss(part, self._reach, names):
                return

    def seal(self, store: Store, version: int) -> list[Batch]:
        """Seal full batches, and the last one when the oldest of it has waited long enough."""
        due = self._now - self._since() >= self._rules.wait
        sealed: list[Batch] = []
        for part, full in cut(self._found, self._pairs, self._rules.size):
            stop = len(sealed) >= self._room or (sealed and self._spent(_SEAL_SHARE))
            if stop or not (full or due):
                break
            try:
                sealed.append(append(store, version + len(sealed), self._live, part))
            except DecidedMeanwhileError:
                break  # what lies there may be another thing by now: the next tick looks again
            self._sealed.update(part)
        return sealed

    def after(self) -> Cursor:
        """The cursor for the next tick."""
        positions = {folder: self._cursor.positions.get(folder, "") for folder in self._folders}
        positions.update({folder: reach.position(self._sealed) for folder, reach in self._reaches.items()})
        swept_to = None
        if self._reach is not None and not (self._reach.whole and self._reach.stops.keys() <= self._sealed):
            swept_to = self._reach.position(self._sealed)
        return Cursor(
            positions={folder: key for folder, key in positions.items() if key},
            waiting=self._waiting,
            swept_to=swept_to,
            swept=self._swept,
            since=self._since() if self.left() else None,
            lost=self.lost[:_MOST_FOLDERS],
            saved=self._now,
        )

    def left(self) -> int:
        """Changes that were found and not sealed."""
        return len(self._found.keys() - self._sealed)

    def warnings(self) -> list[str]:
        """What somebody should look at."""
        aside = [key for key, seen in self._waiting.items() if self._now - seen > self._rules.patience]
        told = []
        if aside:
            told.append(f"set aside, incomplete for {self._rules.patience / 60:g} minutes: {_names(aside)}")
        if self._unusable:
            told.append(f"no shards, for no store can keep such names: {_names(self._unusable)}")
        if self.lost:
            told.append(str(landed.lost_corpora(self._landing, self.lost)))
        return told

    def _since(self) -> float:
        return self._now if self._cursor.since is None else min(self._cursor.since, self._now)

    def _full(self) -> bool:
        return len(self._found) >= self._room * self._rules.size.shards

    def _spent(self, share: float) -> bool:
        return self._elapsed() >= share * self._rules.budget

    def _parts(self, listing: Iterable[Listed], reach: Reach, share: float) -> Iterator[list[Listed]]:
        """Slices of a listing, as many as room and time allow; where there is room, at least one."""
        items = filter(self._usable, listing)
        while not self._full():
            part: list[Listed] = []
            reach.whole = True
            for item in items:
                part.append(item)
                if len(part) == _SLICE or (item.size < 0 and self._spent(share)):  # a folder passed is a request
                    reach.whole = False
                    break
            yield part
            reach.end = part[-1].key if part else reach.end
            if reach.whole or self._spent(share):
                return

    def _usable(self, item: Listed) -> bool:
        if landed.usable(item.key):
            return True
        if len(self._unusable) < _MOST_WAITING and item.key not in self._unusable:
            self._unusable.append(item.key)
        return False

    def _compare(self, part: list[Listed], reach: Reach, *, patient: bool) -> None:
        """Note what of these keys the log does not say; `patient` passes stop at incomplete shards for a while."""
        fresh, before = [], reach.end
        for item in part:
            if is_shard(item.key):
                known = self._live.get(item.key)
                if known is None or (known[1].size, known[1].stamp) != (item.size, item.stamp):
                    fresh.append((item, before))
                else:
                    self._waiting.pop(item.key, None)
            before = item.key
        counts = self._inspector.pairs([item for item, _ in fresh])
        for (item, before), count in zip(fresh, counts, strict=True):
            if count is not None:
                self._waiting.pop(item.key, None)
                self._found[item.key], self._pairs[item.key] = stamp_of(item), count
                reach.stops[item.key] = before
            else:
                self._found.pop(item.key, None)  # the other pass saw it before somebody touched it
                if self._held(item.key) and patient:
                    reach.stops[item.key] = before

    def _held(self, key: str) -> bool:
        """Whether an incomplete shard is to be waited for; one that the cursor has no place for is not."""
        if key not in self._waiting and len(self._waiting) < _MOST_WAITING:
            self._waiting[key] = self._now
        return self._now - self._waiting.get(key, float("-inf")) <= self._rules.patience

    def _miss(self, part: list[Listed], reach: Reach, names: list[str]) -> bool:
        """Note live shards that a slice of the sweep should have listed; False when time or room ran out."""
        listed = [item.key for item in part]
        high = len(names) if reach.whole else bisect_right(names, listed[-1])
        there = set(listed)
        missing = [name for name in names[bisect_right(names, reach.end) : high] if name not in there]
        for at in range(0, len(missing), _SLICE):
            some = missing[at : at + _SLICE]
            for name in some:
                self._waiting.pop(name, None)
            suspects = [name for name in some if name in self._live and not self._is_lost(corpus_of(name))]
            for name in landed.gone(self._landing, suspects):
                place = bisect_left(listed, name)
                self._found[name] = None
                reach.stops[name] = listed[place - 1] if place else reach.end
            if at + _SLICE < len(missing) and (self._full() or self._spent(1.0)):
                reach.end, reach.whole = some[-1], False
                return False
        return True

    def _is_lost(self, corpus: str) -> bool:
        if corpus not in self._probed:
            self._probed[corpus] = landed.is_lost(self._landing, corpus)
        return self._probed[corpus]


def _names(keys: list[str]) -> str:
    shown = ", ".join(repr(key[:100]) for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
