"""How fast long work goes and how much of it is left, in a few words for a log line.

What belongs here: the words. What does not: when a line is due, where it goes.
"""

import time
from collections.abc import Callable


class Pace:
    """Remembers where each piece of work began; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}

    def words(self, done: int, total: int, what: str) -> str:
        """Such as `training steps: 120 of 2,000, 3.2/s, 10 min left`; the rate from the second call on."""
        text, rate = f"{what}: {done:,} of {total:,}", self.rate(done, what)
        if not rate:
            return text
        text += f", {rate:.1f}/s" if rate >= 1 else f", {1 / rate:.1f} s each"
        return f"{text}, {duration((total - done) / rate)} left" if done < total else text

    def rate(self, done: int, what: str) -> float | None:
        """How many a second since the first call for `what`, which like one that goes back has None."""
        now = self._clock()
        if done < self._last.get(what, 0):
            self._began.pop(what)
        self._last[what] = done
        began, first = self._began.setdefault(what, (now, done))
        return (done - first) / (now - began) if done > first and now > began else None


def duration(seconds: float) -> str:
    """A time that is roughly known: `40 s`, `9 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
