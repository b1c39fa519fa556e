"""`compalign browse`: pairs of a dataset version by decision and order, as its pages show them."""

import click


@click.command("browse")
@click.option("--dataset", default="current", show_default=True, help="A version: current, or part of its work key.")
@click.option("--reason", "group", help="kept, or why pairs were dropped. Without it: how many of each there are.")
@click.option("--order", default="best", show_default=True, help="best, worst, nearest (to the cut) or random.")
@click.option("--limit", type=click.IntRange(0), default=24, show_default=True, help="Most pairs that are printed.")
@click.option("--seed", default=7, show_default=True, help="Of the order random.")
@click.option("--after", metavar="PLACE", help="Go on behind this place of the order best, as a page gives it.")
def command(dataset: str, group: str | None, order: str, limit: int, seed: int, after: str | None) -> None:
    r"""Print pairs of a filtered dataset: pair id, shard, key and caption index, tab-separated.

    Each gallery of a dataset's page says which command prints the same pairs.

    \b
    compalign browse
    compalign browse --reason below_cut --order nearest --limit 24
    """
    from compalign_dagster.cli.terminal import tabbed
    from compalign_dagster.selection import views
    from compalign_dagster.selection.place import parse_key
    from compalign_dagster.selection.select import TIE_BREAK
    from compalign_dagster.selection.versions import resolve
    from compalign_dagster.settings import load
    from compalign_dagster.store import open_store

    version = resolve(open_store(load().store), dataset)
    if group is None:
        for name in views.GROUPS:
            if pairs := views.size(version, name):
                click.echo(f"{name}\t{pairs}")
        return
    place = None if after is None else parse_key(after)
    view = views.View(group, order, limit, seed, place)
    for row in views.rows(version, view).select(TIE_BREAK).iter_rows():
        click.echo(tabbed(row))
