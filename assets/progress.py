"""Progress of long core work: log lines for the terminal and Dagster's event log, observations for an asset's page."""

import logging
import time
from collections.abc import Callable

import dagster as dg

from compalign_dagster.pace import Pace

_SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_OBSERVATIONS = 30.0  # an event each, kept for good

log = logging.getLogger(f"compalign_dagster.{__name__}")

Progress = Callable[[int, int, str], None]  # done, total, of what


def logged(asset: str) -> Progress:
    """A progress callback that logs the first and last step of each piece of work, and one every few seconds."""
    last: dict[str, float] = {}
    pace = Pace()

    def progress(done: int, total: int, what: str) -> None:
        now, words = time.monotonic(), pace.words(done, total, what)
        if done < total and now - last.get(what, -_SECONDS_BETWEEN_LINES) < _SECONDS_BETWEEN_LINES:
            return
        last[what] = now
        log.info("%s: %s", asset, words)

    return progress


def observed(context: dg.AssetExecutionContext, seconds: float | None = None, **facts: str | None) -> Progress:
    """As `logged`, and an observation of the asset every `seconds`, with the rate, the time left and `facts`.

    For work that is one thing: what is done is counted from the first call on. Call it from the step's own thread.
    """
    say, pace, began = logged(context.asset_key.to_user_string()), Pace(), time.monotonic()
    between = SECONDS_BETWEEN_OBSERVATIONS if seconds is None else seconds

    def progress(done: int, total: int, what: str) -> None:
        nonlocal began
        say(done, total, what)
        rate, now = pace.rate(done, what), time.monotonic()
        if done >= total or now - began < between:
            return
        began = now
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
