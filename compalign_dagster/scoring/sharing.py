"""Who scores which shards: a few at a time to each worker, and those of a dead worker to another.

What belongs here: the book-keeping of several workers, whatever they are. What does not: starting and watching them.
"""

import logging
import traceback
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring.work import ShardWork

_ROUNDS = 2  # shards are handed out in at least so many rounds, so that workers end at about the same time
_MOST_AT_ONCE = 4  # shards in a worker's hands: enough to read the next one while one is computed
_MOST_DEATHS = 3  # of workers that were at the same shard
_MOST_HANGS = 2  # each costs the time until it is noticed

log = logging.getLogger(__name__)


class Shares:
    """The works that wait, and those in the hands of each of `workers` workers."""

    def __init__(self, works: Iterable[ShardWork], workers: int) -> None:
        self._waiting, self._workers = list(works), workers
        self._held: dict[Hashable, list[ShardWork]] = {}
        self._deaths, self._hangs = Counter[str](), Counter[str]()

    @property
    def unfinished(self) -> int:
        """Works that are not done, handed out or not."""
        return len(self._waiting) + sum(map(len, self._held.values()))

    def give(self, worker: Hashable) -> list[ShardWork]:
        """The next few works, now in this worker's hands; none where none waits."""
        count = min(_MOST_AT_ONCE, -(-len(self._waiting) // (_ROUNDS * self._workers)))
        given, self._waiting = self._waiting[:count], self._waiting[count:]
        self._held.setdefault(worker, []).extend(given)
        return given

    def done(self, worker: Hashable, key: str) -> ShardWork:
        """The work of this key, out of this worker's hands."""
        held = self._held[worker]
        work = next(item for item in held if item.key == key)
        held.remove(work)
        return work

    def died(self, worker: Hashable, name: str, why: str) -> None:
        """Put a dead worker's works back, first in line.

        Raises `CompalignError` for a shard at which one worker after the other died.
        """
        work = self._put_back(worker, f"{name} died ({why})")
        if work:
            self._deaths[work.key] += 1
            if self._deaths[work.key] >= _MOST_DEATHS:
                raise CompalignError(
                    f"shard {work.shard}",
                    expected="workers that live to score it",
                    found=f"{_MOST_DEATHS} of them dead, the last one ({name}) by {why}",
                    remedy="Most likely memory: lower COMPALIGN_SCORE_BATCH_IMAGES or COMPALIGN_IMAGE_PIXELS.",
                )

    def hung(self, worker: Hashable, name: str, seconds: float) -> None:
        """As `died`, for a worker that was ended because so many seconds brought no pair."""
        work = self._put_back(worker, f"{name} hung ({seconds:.0f} s without a pair) and was ended")
        if work:
            self._hangs[work.key] += 1
            if self._hangs[work.key] >= _MOST_HANGS:
                raise CompalignError(
                    f"shard {work.shard}",
                    expected="workers that score it to the end",
                    found=f"{_MOST_HANGS} of them without a pair for {seconds:.0f} s, the last one {name}",
                    remedy="Look at its device and at the landing store; where it is only slow, raise "
                    "COMPALIGN_SCORE_STALL_MINUTES. What is published stays: run again.",
                )

    def _put_back(self, worker: Hashable, what: str) -> ShardWork | None:
        """The work that it was at, or None."""
        held = self._held.pop(worker, [])
        shards = ", ".join(work.shard for work in held) or "none"
        log.warning("%s; its shards go to another worker: %s", what, shards)
        self._waiting[:0] = held
        return held[0] if held else None


class Failed(NamedTuple):
    """What a worker raised, on its way to the process that it works for."""

    error: CompalignError | None  # None where only its text can travel
    text: str

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """An error that was just caught."""
        return cls(error, "") if isinstance(error, CompalignError) else cls(None, traceback.format_exc())

    def at(self, name: str) -> CompalignError:
        """The error to raise, of a worker of this name."""
        if self.error is not None:
            return self.error
        log.error("%s: %s", name, self.text)
        return CompalignError(
            name,
            expected="it to score to the end",
            found=self.text.strip().splitlines()[-1],
            remedy="Its traceback is in the log; please report it.",
        )
