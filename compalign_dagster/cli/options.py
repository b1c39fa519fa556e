"""Options that several verbs share, so that they mean the same everywhere."""

import logging
import time
from collections.abc import Callable

import click

_REPORT_SECONDS = 5.0

log = logging.getLogger(__name__)

shards = click.option(
    "--shards",
    "patterns",
    metavar="GLOB",
    multiple=True,
    required=True,
    help="Tars to read: a folder (every *.tar below), a quoted glob (** for any depth) or an s3:// prefix. "
    "May be repeated.",
)
strict = click.option("--strict", is_flag=True, help="Leave with exit code 1 when anything was quarantined.")
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)


def progress() -> Callable[[int, int, str], None]:
    """A progress callback that logs at most every few seconds, and once at each end."""
    last = time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            log.info("%s: %d of %d", what, done, total)

    return report
