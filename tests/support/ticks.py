"""Ticks of automation, as its sensor makes them, and cheap stand-ins for the runs that they request.

`Ticks` evaluates the conditions again and again with a clock of its own, and hands the cursor on in its
serialised form. What is requested is then executed for real (`execute`), or reported as done or failed
without doing it (`Reports`), with the tags and check results that a real run leaves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.utils import make_new_run_id

from assets import keys
from assets.partitions import CRAWL_BATCHES
from sensors.automation import FOLLOWS

Request = tuple[str, str | None]  # asset, partition
_JOB = "__ASSET_JOB"
START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Ticks:
    """One automation sensor over an instance; `seconds` pass before each tick."""

    defs: dg.Definitions
    instance: dg.DagsterInstance
    now: datetime = START
    cursor: object = None

    def tick(self, seconds: float = 30, *, save: bool = True) -> set[Request]:
        """What a tick requests. With `save=False` the daemon dies before it has written the cursor."""
        self.now += timedelta(seconds=seconds)
        result = dg.evaluate_automation_conditions(
            defs=self.defs, instance=self.instance, cursor=self.cursor, evaluation_time=self.now
        )
        if save:
            self.cursor = result.cursor
        return {
            (key.to_user_string(), partition)
            for key in self.defs.resolve_asset_graph().get_all_asset_keys()
            for partition in result.get_requested_partitions(key)
        }

    def until_quiet(self, most: int = 40, seconds: float = 30) -> list[set[Request]]:
        """Tick and execute what is requested until two ticks in a row ask for nothing."""
        history: list[set[Request]] = []
        while len(history) < most and not (len(history) >= 2 and not history[-1] and not history[-2]):
            history.append(self.tick(seconds))
            self.execute(history[-1])
        return history

    def execute(self, requested: Iterable[Request]) -> dict[str | None, bool]:
        """Run what was requested for real, one run for each partition as the daemon does; who succeeded."""
        by_partition: dict[str | None, list[dg.AssetKey]] = {}
        for name, partition in sorted(requested, key=str):
            by_partition.setdefault(partition, []).append(dg.AssetKey(name))
        job = self.defs.resolve_implicit_global_asset_job_def()
        return {
            partition: job.get_subset(asset_selection=set(selection))
            .execute_in_process(instance=self.instance, partition_key=partition, raise_on_error=False)
            .success
            for partition, selection in by_partition.items()
        }


@dataclass
class Reports:
    """Runs that never ran: the events that a batch's work leaves in Dagster, without the work."""

    defs: dg.Definitions
    instance: dg.DagsterInstance
    running: dict[Request, str] = field(default_factory=dict)  # what is under way -> its run
    versions: dict[Request, str] = field(default_factory=dict)  # data version of what was made last

    def __post_init__(self) -> None:
        graph = self.defs.resolve_asset_graph()
        self._checks = {key: sorted(check.name for check in graph.get(key).check_keys) for key in FOLLOWS}

    def land(self, batches: Iterable[str]) -> None:
        """What the arrival sensor does: events first, then partitions."""
        batches = list(batches)
        for batch in batches:
            self._materialise(keys.LANDED_SHARDS, batch, "1", run_id=None)
        self.instance.add_dynamic_partitions(str(CRAWL_BATCHES.name), batches)

    def land_again(self, batch: str, version: str) -> None:
        """Another content under the name of a batch."""
        self._materialise(keys.LANDED_SHARDS, batch, version, run_id=None)

    def promote(self, version: str) -> None:
        """A promotion, or another one."""
        self._materialise(keys.PROMOTED_MODEL, None, version, run_id=None)

    def do(self, requested: Iterable[Request], version: str = "1", *, failing: Iterable[Request] = ()) -> None:
        """Run all that was requested, upstream first within a partition; a failure stops its run."""
        failing, broken = set(failing), set()
        order = {key.to_user_string(): at for at, key in enumerate(FOLLOWS)}
        for name, partition in sorted(requested, key=lambda item: (str(item[1]), order[item[0]])):
            self.start(name, partition)
            if (name, partition) in failing or partition in broken:
                broken.add(partition)
                self.end(name, partition)
            else:
                self.end(name, partition, version=version)

    def start(self, name: str, partition: str | None) -> None:
        """A run of it is under way."""
        run_id = make_new_run_id()
        tags = {"dagster/partition": partition} if partition else {}
        key = dg.AssetKey(name)
        self.instance.add_run(
            DagsterRun(_JOB, run_id, status=dg.DagsterRunStatus.STARTED, asset_selection={key}, tags=tags)
        )
        self._report(run_id, "ASSET_MATERIALIZATION_PLANNED", AssetMaterializationPlannedData(key, partition))
        self.running[name, partition] = run_id

    def end(self, name: str, partition: str | None, *, version: str | None = None, check_passed: bool = True) -> None:
        """The run under way ends: with this version and its checks, or with a failure."""
        run_id, key = self.running.pop((name, partition)), dg.AssetKey(name)
        if version is not None:
            self._materialise(key, partition, version, run_id=run_id)
            made = self._newest(key, partition)
            target = AssetCheckEvaluationTargetMaterializationData(
                storage_id=made.storage_id, run_id=run_id, timestamp=made.timestamp
            )
            for check in self._checks[key]:
                found = dg.AssetCheckEvaluation(
                    key, check, check_passed, target_materialization_data=target, partition=partition
                )
                self._report(run_id, "ASSET_CHECK_EVALUATION", found)
        succeeded = version is not None and check_passed
        self._report(run_id, "PIPELINE_SUCCESS" if succeeded else "PIPELINE_FAILURE")

    def _materialise(self, key: dg.AssetKey, partition: str | None, version: str, *, run_id: str | None) -> None:
        """An event with its data version and the materialisation that it read upstream."""
        name, upstream = key.to_user_string(), FOLLOWS.get(key)
        version = f"{name} {partition} {version}"
        tags = {"dagster/data_version": version}
        read = self._newest(upstream, partition) if upstream else None
        if upstream and read:
            tags[f"dagster/input_event_pointer/{upstream.to_user_string()}"] = str(read.storage_id)
        event = dg.AssetMaterialization(key, partition=partition, tags=tags)
        if run_id is None:
            self.instance.report_runless_asset_event(event)
        else:
            self._report(run_id, "ASSET_MATERIALIZATION", StepMaterializationData(event))
        self.versions[name, partition] = version

    def _newest(self, key: dg.AssetKey, partition: str | None) -> dg.EventLogRecord | None:
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        return next(iter(self.instance.fetch_materializations(wanted, limit=1).records), None)

    def _report(self, run_id: str, kind: str, data: object = None) -> None:
        self.instance.report_dagster_event(
            DagsterEvent(event_type_value=kind, job_name=_JOB, event_specific_data=data), run_id=run_id
        )
