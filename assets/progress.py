"""Progress of long core work: log lines for the terminal and Dagster's event log, observations for an asset's page."""

import logging
import math
import time
from collections.abc import Callable

import dagster as dg

from compalign_dagster.pace import Pace

# An event each, kept for good. At first, and in work that goes on and on; in between a twentieth of the time so far.
_FIRST_LINES, SECONDS_BETWEEN_LINES = 5.0, 60.0
_FIRST_OBSERVATIONS, SECONDS_BETWEEN_OBSERVATIONS = 30.0, 120.0
_SHARE = 1 / 20

log = logging.getLogger(f"compalign_dagster.{__name__}")

Progress = Callable[[int, int, str], None]  # done, total, of what


def logged(asset: str) -> Progress:
    """A progress callback that logs the first and last step of each piece of work, and one every while."""
    times: dict[str, tuple[float, float]] = {}  # of each piece of work: its first step, its last line
    pace = Pace()

    def progress(done: int, total: int, what: str) -> None:
        now, words = time.monotonic(), pace.words(done, total, what)
        began, last = times.get(what, (now, -math.inf))
        if done < total and now - last < _between(now - began, _FIRST_LINES, SECONDS_BETWEEN_LINES):
            return
        times[what] = began, now
        log.info("%s: %s", asset, words)

    return progress


def observed(context: dg.AssetExecutionContext, **facts: str | None) -> Progress:
    """As `logged`, and now and then an observation of the asset, with the rate, the time left and `facts`.

    For work that is one thing: what is done is counted from the first call on. Call it from the step's own thread.
    """
    say, pace = logged(context.asset_key.to_user_string()), Pace()
    began = last = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal last
        say(done, total, what)
        rate, now = pace.rate(done, what), time.monotonic()
        due = _between(now - began, _FIRST_OBSERVATIONS, SECONDS_BETWEEN_OBSERVATIONS)
        if done >= total or now - last < due:
            return
        last = now
        context.log_event(
            dg.AssetObservation(
                context.asset_key,
                partition=context.partition_key if context.has_partition_key else None,
                description=f"{done:,} of {total:,} {what}",
                metadata={
                    f"{what}_done": done,
                    what: total,
                    f"{what}_per_second": round(rate, 1) if rate else None,
                    "seconds_left": round((total - done) / rate) if rate else None,
                    **facts,
                },
            )
        )

    return progress


def _between(elapsed: float, first: float, most: float) -> float:
    """Seconds between two events of work that began so many seconds ago."""
    return min(most, max(first, elapsed * _SHARE))
