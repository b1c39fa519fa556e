"""Where the time of scoring goes: which stage the others waited for, moment by moment.

The thread that runs the model is the clock: all its time is running the model (`forward`), building tables
(`write`), or waiting: for a shard's pairs or an image's bytes (`read`), for an image that is decoded (`decode`).
What does not belong here: what a device is doing meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "forward", "write")


class Meter:
    """Adds up seconds by stage; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count the time inside for `stage`."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds[stage] += self._clock() - started

    def shares(self) -> dict[str, float]:
        """Each stage's share of the time counted so far; they sum to 1. All `write` when there was none."""
        whole = sum(self.seconds.values())
        if not whole:
            return {stage: float(stage == "write") for stage in STAGES}
        return {stage: seconds / whole for stage, seconds in self.seconds.items()}


def in_words(shares: dict[str, float]) -> str:
    """Such as `forward 93 %, decode 5 %, read 2 %`, the largest first; what is below half a percent is left out."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{stage} {share:.0%}".replace("%", " %") for stage, share in ranked if share >= 0.005)
