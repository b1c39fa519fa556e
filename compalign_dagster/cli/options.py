"""Options that several verbs share, so that they mean the same everywhere."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compalign_dagster.pace import Pace

_REPORT_SECONDS = 5.0

log = logging.getLogger(__name__)

shards = click.option(
    "--shards",
    "patterns",
    metavar="GLOB",
    multiple=True,
    required=True,
    help="Tars to read (*.tar, *.tar.gz, *.tgz): a folder (all below), a quoted glob (** for any depth) or an s3:// "
    "prefix. May be repeated.",
)


def budgets(member: str, pixels: str, caption: str, members: str, unpacked: str) -> Callable[[Any], Any]:
    """The options that bound what is read of a shard; the arguments are what their help says of the default."""
    described = [
        ("--member-bytes", f"Largest member that is read.  [default: {member}]"),
        ("--image-pixels", f"Largest image that is decoded.  [default: {pixels}]"),
        ("--caption-bytes", f"Longest caption that becomes a pair.  [default: {caption}]"),
        ("--members", f"Most members of a shard that are read.  [default: {members}]"),
        ("--unpacked-bytes", f"Most bytes that a .tar.gz may unpack to.  [default: {unpacked}]"),
    ]

    def decorate(command: Any) -> Any:
        for name, text in reversed(described):
            command = click.option(name, type=click.IntRange(1), help=text)(command)
        return command

    return decorate


strict = click.option("--strict", is_flag=True, help="Leave with exit code 1 when anything was quarantined.")
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
features = click.option(
    "--features",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the offline backbone keeps frozen features for the next command, at most 1 GiB; changes no figure.  "
    "[default: in memory]",
)


def progress() -> Callable[[int, int, str], None]:
    """A progress callback that logs at most every few seconds, and once at each end."""
    last = time.monotonic()
    pace = Pace()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        now, words = time.monotonic(), pace.words(done, total, what)
        if now - last >= _REPORT_SECONDS:
            last = now
            log.info(words)

    return report
