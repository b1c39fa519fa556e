"""The whole graph on a small sample crawl, run through an ephemeral Dagster instance."""

from dataclasses import dataclass

import dagster as dg
import polars as pl

from compalign_dagster import decisions, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.definitions import build_defs
from compalign_dagster.samples.crawl import write_sample_crawl
from compalign_dagster.selection.pairs import kept_frames
from compalign_dagster.selection.version import Version
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store, open_store

BATCH = "batch-00001"


@dataclass(frozen=True)
class Pipeline:
    """Definitions over one settings' folders, and the instance that records their runs."""

    settings: Settings
    defs: dg.Definitions
    instance: dg.DagsterInstance

    @property
    def store(self) -> Store:
        return open_store(self.settings.store)

    def run(self, job: str, partition: str | None = None, **config: object) -> dg.ExecuteInProcessResult:
        """Run a job; `config` is configuration of `filtered_dataset`."""
        run_config = {"ops": {"filtered_dataset": {"config": config}}} if config else None
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=partition, run_config=run_config, raise_on_error=False
        )

    def must(self, job: str, partition: str | None = None, **config: object) -> dg.ExecuteInProcessResult:
        """Run a job that is expected to succeed."""
        result = self.run(job, partition, **config)
        assert result.success, "\n".join(failures(result))
        return result

    def learn(self) -> None:
        """Land, index and train; then promote past the gate, which so little training cannot pass."""
        for job, partition in (("land_batch", None), ("index_batch", BATCH), ("learn_reward", None)):
            self.must(job, partition)
        model = latest.require(self.store, "reward_model")
        value = {"manifest": model.manifest_key, "model_version": model.facts["model_version"]}
        decisions.decide(self.store, "promoted_model", value, after=0)
        self.must("promote_model")

    def score_and_filter(self, batch: str = BATCH) -> dg.ExecuteInProcessResult:
        self.must("score_batch", batch)
        return self.must("refilter")


def small_pipeline(settings: Settings, *, pairs: int = 120, judged: int = 60) -> Pipeline:
    """A landed sample of a few shards, not yet sealed."""
    write_sample_crawl(settings.home, seed=3, pairs=pairs, judged_images=judged, evaluation_pairs=24, shard_pairs=40)
    return Pipeline(settings, build_defs(settings=settings), dg.DagsterInstance.ephemeral())


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What failed in a run: step errors with their causes, and blocking checks with their descriptions."""
    found = []
    for event in result.all_events:
        if event.is_step_failure:
            found.append(event.step_failure_data.error.to_string())
    for check in result.get_asset_check_evaluations():
        if not check.passed:
            found.append(f"check {check.check_name}: {check.description} {check.metadata}")
    return found


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    """Metadata values of the materialisation of an asset in a run."""
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey(asset)]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def kept_pairs(dataset: Artifact) -> list[dict]:
    """The kept pairs of a version, with caption and place, in reading order."""
    return pl.concat(kept_frames(Version.open(dataset))).to_dicts()


def pairs_by_shard(dataset: Artifact) -> dict[str, set[str]]:
    """Pair ids of a version by shard, kept and dropped ones."""
    version = Version.open(dataset)
    found: dict[str, set[str]] = {}
    for batch in version.batches():
        for shard, pair_id in version.decided(batch, ["shard", "pair_id"]).select("shard", "pair_id").iter_rows():
            found.setdefault(shard, set()).add(pair_id)
    return found
