"""`compalign policy`: the selection policy in force, another one in its place, what differs, and all there were."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import Settings, load

if TYPE_CHECKING:
    from compalign_dagster.selection.in_force import PolicyInForce
    from compalign_dagster.selection.policy import Policy
    from compalign_dagster.store import Store

_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group("policy")
def command() -> None:
    """Show, change and compare the selection policy in force: how much to keep, of what, and which pairs never.

    A policy is a numbered decision in the store. `compalign policy show > policy.toml`, edit, `compalign policy set
    policy.toml --dry-run`, then without --dry-run: the next run of filtered_dataset keeps by it.
    """


@command.command("show")
@click.option("--version", type=int, metavar="N", help="An earlier one.  [default: the one in force]")
@click.option("--json", "as_json", is_flag=True, help="The fields alone, as JSON.")
def show(version: int | None, as_json: bool) -> None:
    """Print a policy as TOML with every field explained: a file to edit."""
    from compalign_dagster.selection import policy_file

    settings = load()
    found = _policy(settings, _store(settings), version)
    if as_json:
        click.echo(json.dumps(found.policy.model_dump(mode="json"), indent=2))
        return
    click.echo(f"# {_line(found)}")
    click.echo(policy_file.written(found.policy), nl=False)


@command.command("set")
@_FILE
@click.option("--reason", metavar="TEXT", help="Why: recorded for those who ask later. Needed to adopt.")
@click.option("--by", metavar="NAME", help="Who decides.  [default: the user that runs this]")
@click.option("--dry-run", is_flag=True, help="Check the file and say what it would change; decide nothing.")
def put(file: Path, reason: str | None, by: str | None, dry_run: bool) -> None:
    """Put the policy of FILE (TOML or JSON) in force, as a numbered decision. Nothing is filtered by this itself."""
    from compalign_dagster.reward.promoted import Reason
    from compalign_dagster.selection import in_force, policy_file

    settings = load()
    store, asked = _store(settings), policy_file.read(file)
    now = _policy(settings, store, None)
    if asked == now.policy:
        click.echo(f"already in force: {_line(now)}")
        return
    if reason is None and not dry_run:
        raise click.UsageError("Missing option '--reason': say why, it is recorded. --dry-run needs none.")
    _differences(now.policy, asked)
    if dry_run:
        _foresee(store, now.policy, asked)
        click.echo("nothing was decided")
        return
    adopted = in_force.adopt(store, asked, Reason.given(by, reason or ""))
    click.echo(f"in force: {_line(adopted)}")


@command.command("diff")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--version", type=int, metavar="N", help="An earlier policy, in place of a file.")
def diff(file: Path | None, version: int | None) -> None:
    """Say in which fields FILE, or an earlier policy, differs from the policy in force."""
    from compalign_dagster.selection import policy_file

    if (file is None) == (version is None):
        raise click.UsageError("Give one of FILE and --version.")
    settings = load()
    store = _store(settings)
    now = _policy(settings, store, None).policy
    other = policy_file.read(file) if file else _policy(settings, store, version).policy
    if other == now:
        click.echo("no difference")
    _differences(now, other)


@command.command("history")
def history() -> None:
    """List every policy that was in force, newest first: who adopted it, when and why."""
    from compalign_dagster.selection import in_force

    made = in_force.history(_store(load()))
    for found in reversed(made):
        click.echo(_line(found))
    if not made:
        click.echo("no policy was decided yet: the settings' keep fraction holds")


def _store(settings: Settings) -> "Store":
    from resources.storage import Storage

    return Storage.from_settings(settings).store


def _policy(settings: Settings, store: "Store", version: int | None) -> "PolicyInForce":
    """The policy of this number, or in force; the settings' where nobody has decided yet."""
    from compalign_dagster.selection import in_force

    if version is not None:
        return in_force.numbered(store, version)
    made = in_force.history(store)
    return made[-1] if made else in_force.PolicyInForce(in_force.first_policy(settings), 0)


def _differences(now: "Policy", other: "Policy") -> None:
    from compalign_dagster.cli.terminal import plain
    from compalign_dagster.selection import policy_file

    found = policy_file.differences(now, other)
    for item in found:
        click.echo(plain(f"{item.field}: {json.dumps(item.old)} -> {json.dumps(item.new)}  ({item.meaning})"))
    if any(item.remakes_lists for item in found):
        click.echo("other rules: the next run makes every ranked list anew, from the scores that are there")


def _foresee(store: "Store", now: "Policy", asked: "Policy") -> None:
    """What both policies keep of the current version's lists, where those lists can tell."""
    from compalign_dagster import decisions
    from compalign_dagster.cli.what_if import show as show_outcomes
    from compalign_dagster.errors import InputError
    from compalign_dagster.selection import versions
    from compalign_dagster.selection.hand import Hand
    from compalign_dagster.selection.whatif import what_if

    if decisions.current(store, versions.CURRENT) is None:
        click.echo("no dataset is current yet: what it would keep is known after a run")
        return
    hand = Hand(versions.resolve(store, versions.CURRENT))
    try:
        show_outcomes([what_if(hand, hand.version.policy), what_if(hand, asked)])
        click.echo("first: the current version; second: this file")
    except InputError as error:
        click.echo(f"what it would keep is known after a trial run: {error}")


def _line(found: "PolicyInForce") -> str:
    from compalign_dagster.cli.terminal import plain

    if not found.version:
        return "not decided yet: from the settings"
    who = f"  by {plain(found.by)}: {plain(found.why)}" if found.by else ""
    keep = found.policy.keep_count if found.policy.keep_fraction is None else format(found.policy.keep_fraction, "f")
    return f"{found.version}  {found.decided}  keep {keep}{who}"
