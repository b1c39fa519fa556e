"""`compalign restore`: any version of the dataset becomes current again, by a decision of a person."""

from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import Settings, load

if TYPE_CHECKING:
    from compalign_dagster.decisions import Decision
    from compalign_dagster.store import Store


@click.command("restore")
@click.argument("version", required=False)
@click.option("--reason", metavar="TEXT", help="Why: recorded for those who ask later. Needed to restore.")
@click.option("--by", metavar="NAME", help="Who decides.  [default: the user that runs this]")
@click.option("--follow", is_flag=True, help="Let runs move `current` again, from the next one on.")
@click.option("--history", "list_history", is_flag=True, help="List every move of `current`, newest first.")
def command(version: str | None, reason: str | None, by: str | None, follow: bool, list_history: bool) -> None:
    r"""Make VERSION of the dataset current: the beginning of its work key, or its manifest key.

    What a person restored is held: newer scores are filtered as before, and the versions are published, but
    `current` stays until you adopt another policy, or say --follow. A version that lost a list, was altered, or
    still keeps a pair of the block list is refused.

    \b
    compalign restore --history
    compalign restore 3f2a9c11 --reason "the new one lost the charts"
    compalign restore --follow --reason "charts are back"
    """
    if list_history + follow + (version is not None) != 1:
        raise click.UsageError("Give one of VERSION, --follow and --history.")
    settings = load()
    from resources.storage import Storage

    store = Storage.from_settings(settings).store
    if list_history:
        _list(store)
        return
    if reason is None:
        raise click.UsageError("Missing option '--reason': say why, it is recorded.")
    _move(settings, store, version, reason, by)


def _move(settings: Settings, store: "Store", version: str | None, reason: str, by: str | None) -> None:
    from compalign_dagster.cli.events import observe_dataset
    from compalign_dagster.reward.promoted import Reason
    from compalign_dagster.selection import current, in_force, restore

    asked = Reason.given(by, reason)
    if version is None:
        decision = current.follow(store, asked)
        if decision is None:
            click.echo("nothing is held: runs move `current` already")
            return
    else:
        numbers = in_force.history(store)
        decision = restore.restore(store, version, asked, policy=numbers[-1].version if numbers else 0)
    click.echo(_line(decision))
    observe_dataset(settings, decision)


def _list(store: "Store") -> None:
    from compalign_dagster.selection import current

    made = current.history(store)
    for decision in reversed(made):
        click.echo(_line(decision))
    if not made:
        click.echo("no dataset was current yet")


def _line(decision: "Decision") -> str:
    from compalign_dagster.cli.terminal import plain

    value = decision.value
    held = "  held" if value.get("held") else ""
    line = f"{decision.version}  {decision.decided}  {value.get('action', 'move')}  {_name(value['manifest'])}{held}"
    if "by" not in value:
        return f"{line}  by a run"
    return f"{line}  in place of {_name(value['replaces'] or 'none')}  by {plain(value['by'])}: {plain(value['why'])}"


def _name(manifest: str) -> str:
    """A version's work key, as people type it."""
    return manifest.removesuffix("/manifest.json").rpartition("/")[2][:12]
