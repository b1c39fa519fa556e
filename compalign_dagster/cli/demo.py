"""`compalign demo`: everything of a profile, materialised through its Dagster instance."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from compalign_dagster.cli.instance import prepare
from compalign_dagster.cli.progress import show_progress
from compalign_dagster.errors import CompalignError
from compalign_dagster.settings import Settings, load

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Tally:
    """What the runs of a demo did."""

    made: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)


@click.command("demo")
def command() -> None:
    """Materialise the whole graph and say where the report and the dataset lie.

    With the sample profile (the default) it first lands the sample crawl; other profiles use what lies
    in their landing folder. Runs are recorded in the profile's Dagster instance: `compalign ui` shows
    them. Asked again with nothing changed, it recomputes nothing.
    """
    started = time.monotonic()
    settings = load()
    prepare(settings)
    show_progress()
    if settings.profile == "sample" and settings.landing == str(settings.home / "landing"):
        from compalign_dagster.samples.crawl import write_sample_crawl

        write_sample_crawl(settings.home)
    tally = Tally()
    for job, partition in _steps(settings):
        _run(job, partition, tally)
    _report(settings, tally, time.monotonic() - started)


def _steps(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The jobs in order. Batches are looked up when their turn comes: landing makes them."""
    from compalign_dagster.crawl.batches import read_log
    from compalign_dagster.store import open_store

    store = open_store(settings.store)
    yield "land_batch", None
    batches = [batch.key for batch in read_log(store)]
    yield from (("index_batch", batch) for batch in batches)
    yield "learn_reward", None
    yield "promote_model", None
    yield from (("score_batch", batch) for batch in batches)
    yield "refilter", None
    yield "evaluate", None


def _run(job: str, partition: str | None, tally: Tally) -> None:
    import dagster as dg

    from compalign_dagster.definitions import defs

    log = logging.getLogger("compalign_dagster.demo")
    log.info("%s%s", job, f" {partition}" if partition else "")
    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=partition, run_config=_QUIET, raise_on_error=False
        )
    for event in result.all_events:
        if event.is_step_failure:
            raise _failure(job, event.step_failure_data.error)
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            name = materialization.asset_key.to_user_string()
            label = f"{name} {materialization.partition}" if materialization.partition else name
            if name != "landed_shards":
                _note(materialization.metadata, label, tally)
    for check in result.get_asset_check_evaluations():
        if not check.passed:
            told = "warning" if check.severity == dg.AssetCheckSeverity.WARN else "check failed"
            why = f": {check.description}" if check.description else ""
            tally.failed_checks.append(f"{told}: {check.asset_key.to_user_string()}: {check.check_name}{why}")
    if not result.success:
        raise CompalignError(
            f"job {job}", expected="success", found="a failed run", remedy="Open the run in `compalign ui`."
        )


def _note(metadata: Mapping[str, Any], label: str, tally: Tally) -> None:
    reused = metadata["reused"].value if "reused" in metadata else False
    into = tally.reused if reused else tally.made
    if label not in tally.made and label not in tally.reused:
        into.append(label)


def _failure(job: str, error: Any) -> CompalignError:
    while error.cause is not None:
        error = error.cause
    return CompalignError(
        f"job {job}",
        expected="success",
        found=error.message.strip(),
        remedy="Open the run in `compalign ui`.",
    )


def _report(settings: Settings, tally: Tally, seconds: float) -> None:
    from compalign_dagster import latest
    from compalign_dagster.store import open_store

    store = open_store(settings.store)
    dataset, report = latest.require(store, "filtered_dataset"), latest.require(store, "eval_report")
    facts = dataset.facts
    click.echo("")
    if tally.made:
        click.echo(f"made {len(tally.made)} artifacts, reused {len(tally.reused)}, in {seconds:.0f} s")
    else:
        click.echo(f"nothing recomputed: all {len(tally.reused)} artifacts were up to date ({seconds:.0f} s)")
    for line in tally.failed_checks:
        click.echo(line)
    click.echo(f"kept     {facts['kept']:,} of {facts['pairs']:,} pairs")
    click.echo(f"dataset  {store.url}/{dataset.file_key('page.html')}")
    click.echo(f"report   {store.url}/{report.file_key('page.html')}")
    click.echo("files    compalign export --out FOLDER")
    click.echo("next     make ui")
