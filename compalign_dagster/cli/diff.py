"""`compalign diff`: what entered and what left between two versions of the dataset, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import load

if TYPE_CHECKING:
    from compalign_dagster.selection.diff import Diff
    from compalign_dagster.selection.version import Version
    from compalign_dagster.store import Store


@click.command("diff")
@click.argument("before")
@click.argument("after")
@click.option("--json", "as_json", is_flag=True, help="The account as JSON.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Also write the page with pictures.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write every change as Parquet.")
@click.option("--side", type=click.Choice(["entered", "left"]), help="Print pairs in place of the account.")
@click.option("--cause", metavar="NAME", help="With --side: of this cause only.")
@click.option("--limit", type=click.IntRange(0), default=24, show_default=True, help="With --side: most pairs.")
def command(
    before: str,
    after: str,
    as_json: bool,
    page: Path | None,
    out: Path | None,
    side: str | None,
    cause: str | None,
    limit: int,
) -> None:
    r"""Compare two versions of the dataset: BEFORE and AFTER are `current` or beginnings of work keys.

    Every pair that only one of them keeps has one cause: its shard came, went or was replaced; the model; the block
    list; the policy's rules, caps, or cut; or the crawl around it, in which the same policy cuts elsewhere.
    --side prints pairs with the smallest ids, tab-separated, as the page shows them.

    \b
    compalign diff 3f2a9c11 current --page diff.html
    compalign diff 3f2a9c11 current --side left --cause takedown
    """
    from compalign_dagster.selection.diff import CAUSES
    from compalign_dagster.selection.versions import resolve
    from resources.storage import Storage

    if cause is not None and (side is None or cause not in CAUSES):
        raise click.UsageError(f"--cause goes with --side and is one of {', '.join(CAUSES)}.")
    storage = Storage.from_settings(load())
    a, b = (resolve(storage.store, name) for name in (before, after))
    if side is not None:
        _pairs(a, b, side, cause, limit)
        return
    found = _account(a, b, out)
    if page is not None:
        _write(page, a, b, found, storage.landing)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        _show(a, b, found)


def _account(a: "Version", b: "Version", out: Path | None) -> "Diff":
    from compalign_dagster.cli.files import table_file
    from compalign_dagster.selection.diff import CHANGES, account, changes, diff

    if out is None:
        return diff(a, b)
    found = account(a, b)
    with table_file(out, CHANGES) as table:
        for frame in changes(a, b):
            found.add(frame)
            table.write_table(frame.select(CHANGES.names).to_arrow().cast(CHANGES))
    return found


def _show(a: "Version", b: "Version", found: "Diff") -> None:
    from compalign_dagster.cli.terminal import figure, table
    from compalign_dagster.selection.diff import CAUSES, ENTERED, LEFT, SIDES

    for version, name in ((a, "before"), (b, "after")):
        click.echo(f"{name:6}  {version.artifact.work_key[:12]}  {version.facts['kept']:,} pairs kept")
    rows = [
        [cause, *(f"{found.counts[side, cause]:,}" for side in SIDES), meaning]
        for cause, meaning in CAUSES.items()
        if found.counts[ENTERED, cause] or found.counts[LEFT, cause]
    ]
    rows.append(["all", *(f"{found.total(side):,}" for side in SIDES), ""])
    rows.append(["mean reward", *(figure(found.mean(side)) for side in SIDES), ""])
    lines = table(["cause", *SIDES], [row[:3] for row in rows]).splitlines()
    for line, meaning in zip(lines, ["", *(str(row[3]) for row in rows)], strict=True):
        click.echo(f"{line}  {meaning}".rstrip())


def _pairs(a: "Version", b: "Version", side: str, cause: str | None, limit: int) -> None:
    from compalign_dagster.cli.terminal import tabbed
    from compalign_dagster.selection.diff import pairs
    from compalign_dagster.selection.select import TIE_BREAK

    for row in pairs(a, b, side, cause, limit).select(*TIE_BREAK, "reward", "cause").iter_rows():
        click.echo(tabbed(row))


def _write(page: Path, a: "Version", b: "Version", found: "Diff", landing: "Store") -> None:
    from compalign_dagster.cli.files import unwritable
    from compalign_dagster.pages.diff import diff_view

    data = diff_view(a, b, landing, found, served=False)
    try:
        page.write_bytes(data)
    except OSError as error:
        raise unwritable(page, error) from error
    click.echo(f"page {page} ({len(data):,} bytes)", err=True)
