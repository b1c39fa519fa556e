"""Progress on the terminal: the core's log lines with the seconds since the start."""

import logging
import sys
import time


class _Elapsed(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{time.monotonic() - self._start:5.0f} s  {mark}{record.getMessage()}"


def show_progress() -> None:
    """Show what the core logs from INFO upwards, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Elapsed())
    log = logging.getLogger("compalign_dagster")
    log.setLevel(logging.INFO)
    log.handlers = [handler]
