"""`compalign promote`: the decision which model scores the crawl, its rehearsal, its undoing, its history."""

from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import Settings, load

if TYPE_CHECKING:
    from compalign_dagster.decisions import Decision
    from compalign_dagster.reward.promotion import Claim
    from resources.storage import Storage


@click.command("promote")
@click.option(
    "--model", "version", metavar="VERSION", help="Beginning of a model version.  [default: the newest model]"
)
@click.option("--reason", metavar="TEXT", help="Why: recorded for those who ask later. Needed to promote.")
@click.option("--by", metavar="NAME", help="Who decides.  [default: the user that runs this]")
@click.option(
    "--dry-run", is_flag=True, help="Put the questions of the gate and try the model on a sample; decide nothing."
)
@click.option("--roll-back", is_flag=True, help="Go back to the model that was promoted before, without a gate.")
@click.option("--history", "list_history", is_flag=True, help="List who promoted which model, when and why.")
def command(
    version: str | None, reason: str | None, by: str | None, dry_run: bool, roll_back: bool, list_history: bool
) -> None:
    r"""Promote a reward model of this profile's store, if the gate lets it pass.

    The gate compares it with chance, with every score it replaces and with the promoted model on the same
    held-out images, beyond the interval; it must be calibrated, compare across images and take no
    shortcut. Bounds are settings (COMPALIGN_MIN_GAIN and others). Promotion re-scores nothing by itself.
    A refusal ends with exit code 2 and says why.

    \b
    compalign promote --dry-run
    compalign promote --reason "better on captions of products, see the shadow report"
    compalign promote --roll-back --reason "kept too many posters"
    compalign promote --history
    """
    if sum((dry_run, roll_back, list_history)) > 1 or (version and (roll_back or list_history)):
        raise click.UsageError("Give one of --dry-run, --roll-back and --history; --model goes with promoting.")
    settings = load()
    if list_history:
        _list(settings)
    elif roll_back:
        _roll_back(settings, reason, by)
    elif dry_run:
        _rehearse(settings, version)
    elif reason is None:
        raise click.UsageError("Missing option '--reason': say why, it is recorded.")
    else:
        _promote(settings, version, reason, by)


def _promote(settings: Settings, version: str | None, reason: str, by: str | None) -> None:
    from assets.promoted_model import examine
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.reward import promoted
    from resources.accelerator import Accelerator
    from resources.storage import Storage

    show_progress()
    asked = promoted.Reason.given(by, reason)
    storage = Storage.from_settings(settings)
    model = promoted.candidate(storage.store, version)
    now = promoted.in_force(storage.store)
    if now is not None and now.value["model_version"] == model.facts["model_version"]:
        click.echo(f"already promoted: {_line(now)}")
        return
    found = examine(storage, Accelerator.from_settings(settings), settings, model)
    _show(found.claims)
    decision = promoted.promote(storage.store, model, found.claims, asked, now=found.now, against=found.against)
    click.echo(f"promoted: {_line(decision)}")
    _tell_dagster(settings, storage, decision)


def _rehearse(settings: Settings, version: str | None) -> None:
    from assets.promoted_model import examine
    from assets.shadow_report import publish_shadow
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.crawl.live import indexed_shards
    from compalign_dagster.reward import promoted
    from compalign_dagster.scoring.shadow import summary
    from resources.accelerator import Accelerator
    from resources.storage import Storage

    show_progress()
    storage, accelerator = Storage.from_settings(settings), Accelerator.from_settings(settings)
    model = promoted.candidate(storage.store, version)
    now = promoted.in_force(storage.store)
    if now is not None and now.value["model_version"] == model.facts["model_version"]:
        click.echo(f"already promoted, nothing to rehearse: {_line(now)}")
        return
    click.echo(f"model {model.facts['model_version'][:12]}, a rehearsal: nothing is decided")
    found = examine(storage, accelerator, settings, model)
    _show(found.claims)
    if indexed_shards(storage.store):
        artifact, _ = publish_shadow(storage, accelerator, settings, model)
        for line in summary(artifact.facts["report"]):
            click.echo(line)
        click.echo(f"page {storage.store.url}/{artifact.file_key('page.html')}")
    else:
        click.echo("no shadow run: no shard is indexed yet")
    promoted.require_claims(model, found.claims)


def _roll_back(settings: Settings, reason: str | None, by: str | None) -> None:
    from compalign_dagster.reward import promoted
    from resources.storage import Storage

    asked = promoted.Reason.given(by, reason or "no reason given")
    storage = Storage.from_settings(settings)
    decision = promoted.roll_back(storage.store, asked)
    click.echo(f"rolled back: {_line(decision)}")
    _tell_dagster(settings, storage, decision)


def _tell_dagster(settings: Settings, storage: "Storage", decision: "Decision") -> None:
    """The event that the job would have sent, where the profile has a Dagster instance. The decision stands anyhow."""
    if not settings.dagster_home.is_dir():
        return
    try:
        _send_event(settings, storage, decision)
    except Exception as error:  # whatever an instance's storage raises
        why = " ".join(str(error).split())[:300] or type(error).__name__
        click.echo(f"the decision stands, but Dagster was not told of it: {why}", err=True)


def _send_event(settings: Settings, storage: "Storage", decision: "Decision") -> None:
    import dagster as dg

    from assets.keys import PROMOTED_MODEL
    from assets.promoted_model import report_of
    from compalign_dagster.cli.instance import prepare
    from sensors.landing import DATA_VERSION_TAG

    prepare(settings)
    report = report_of(storage, decision, moved=True)
    tags = {DATA_VERSION_TAG: report.data_version.value} if report.data_version else {}
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=PROMOTED_MODEL, metadata=report.metadata, tags=tags)
        )


def _list(settings: Settings) -> None:
    from compalign_dagster.reward import promoted
    from resources.storage import Storage

    made = promoted.history(Storage.from_settings(settings).store)
    for decision in reversed(made):
        click.echo(_line(decision))
    if not made:
        click.echo("no model was promoted yet")


def _show(claims: "list[Claim]") -> None:
    """The claims as a list, those that hold first."""
    for claim, holds, figure in sorted(claims, key=lambda item: not item[1]):
        click.echo(f"{'holds' if holds else 'FAILS'}  {_plain(claim)} ({_plain(figure)})")


def _line(decision: "Decision") -> str:
    """One decision on one line."""
    value = decision.value
    what = f"{decision.version}  {decision.decided}  {value.get('action', 'promote')}  {value['model_version'][:12]}"
    return f"{what}  by {_plain(value.get('by', 'unknown'))}: {_plain(value.get('why', 'no reason recorded'))}"


def _plain(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
