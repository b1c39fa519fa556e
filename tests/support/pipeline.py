"""The whole graph on a small sample crawl, run through an ephemeral Dagster instance."""

from dataclasses import dataclass

import dagster as dg

from compalign_dagster.definitions import build_defs
from compalign_dagster.samples.crawl import write_sample_crawl
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

    def learn(self) -> None:
        for job, partition in (
            ("land_batch", None),
            ("index_batch", BATCH),
            ("learn_reward", None),
            ("promote_model", None),
        ):
            assert self.run(job, partition).success, job

    def score_and_filter(self, batch: str = BATCH) -> dg.ExecuteInProcessResult:
        assert self.run("score_batch", batch).success
        result = self.run("refilter")
        assert result.success
        return result


def small_pipeline(settings: Settings, *, pairs: int = 120, judged: int = 60) -> Pipeline:
    """A landed sample of a few shards, not yet sealed."""
    write_sample_crawl(
        settings.home, seed=3, pairs=pairs, judged_images=judged, evaluation_pairs=24, shard_pairs=40
    )
    return Pipeline(settings, build_defs(settings=settings), dg.DagsterInstance.ephemeral())


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    """Metadata values of the materialisation of an asset in a run."""
    (event,) = [
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    ]
    return {name: value.value for name, value in event.materialization.metadata.items()}
