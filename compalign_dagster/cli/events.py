"""Telling Dagster what a person decided on the command line, where the profile has a Dagster instance."""

from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import Settings

if TYPE_CHECKING:
    from compalign_dagster.decisions import Decision


def observe_dataset(settings: Settings, decision: "Decision") -> None:
    """An observation of filtered_dataset with what `current` was and is. The decision stands without it."""
    if not settings.dagster_home.is_dir():
        return
    try:
        _observe(settings, decision)
    except Exception as error:  # whatever an instance's storage raises
        why = " ".join(str(error).split())[:300] or type(error).__name__
        click.echo(f"the decision stands, but Dagster was not told of it: {why}", err=True)


def _observe(settings: Settings, decision: "Decision") -> None:
    import dagster as dg

    from assets.keys import FILTERED_DATASET
    from compalign_dagster.cli.instance import prepare

    prepare(settings)
    value = decision.value
    metadata = {
        "action": value["action"],
        "current": value["manifest"],
        "was": value["replaces"] or "",
        "decision": decision.version,
        "by": value["by"],
        "why": value["why"],
    }
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(dg.AssetObservation(asset_key=FILTERED_DATASET, metadata=metadata))
