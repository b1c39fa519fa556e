"""`compalign prune`: remove old versions of the dataset, and the lists that only they need."""

from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import load

if TYPE_CHECKING:
    from compalign_dagster.selection.prune import Plan


@click.command("prune")
@click.option(
    "--keep", required=True, type=click.IntRange(1), metavar="N", help="How many of the newest versions stay."
)
@click.option("--spare", metavar="VERSION", multiple=True, help="A version that stays, such as a release. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--reason", metavar="TEXT", help="Why: recorded with what went. Needed to remove anything.")
@click.option("--by", metavar="NAME", help="Who decides.  [default: the user that runs this]")
def command(keep: int, spare: tuple[str, ...], dry_run: bool, reason: str | None, by: str | None) -> None:
    r"""Remove versions of the dataset but the N newest, and what only the others need.

    That is ranked lists that no version needs then, and what is remembered of block lists that another has followed.

    Never removed: the current version, what one of the last N decisions or evaluation reports names, anything
    younger than a day, and anything but these: what was landed, indexed, scored and decided stays,
    so that a version can be made again. Do not run it while filtered_dataset is being materialised.

    \b
    compalign prune --keep 10 --dry-run
    compalign prune --keep 10 --spare 3f2a9c11 --reason "the disk is full"
    """
    if reason is None and not dry_run:
        raise click.UsageError("Missing option '--reason': say why, it is recorded. --dry-run needs none.")
    from compalign_dagster.reward.promoted import Reason
    from compalign_dagster.selection import prune
    from resources.storage import Storage

    store = Storage.from_settings(load()).store
    chosen = prune.plan(store, keep, spare)
    _show(chosen)
    if dry_run or not (chosen.versions or chosen.lists):
        click.echo("nothing was removed")
        return
    decision = prune.prune(store, chosen, Reason.given(by, reason or ""))
    click.echo(f"removed; recorded as decisions/prune/{decision.version:08d}.json")


def _show(chosen: "Plan") -> None:
    from compalign_dagster.selection.blocked import KIND

    for item in chosen.versions:
        click.echo(
            f"version {item.work_key[:12]}  {item.manifest['created']}  {item.facts.get('kept', 0):,} pairs kept"
        )
    for item in chosen.lists:
        what = "matches" if item.kind == KIND else "list   "
        click.echo(f"{what} {item.work_key[:12]}  {item.manifest['created']}  {item.partition}")
    click.echo(
        f"{len(chosen.versions)} versions and {len(chosen.lists)} lists, {chosen.size:,} bytes; "
        f"{len(chosen.kept)} versions stay"
    )
