"""Progress of long core work as log lines: the terminal, and Dagster's event log, show the same ones."""

import logging
import time
from collections.abc import Callable

from compalign_dagster.pace import Pace

_SECONDS_BETWEEN_LINES = 5.0

log = logging.getLogger(f"compalign_dagster.{__name__}")


def logged(asset: str) -> Callable[[int, int, str], None]:
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
