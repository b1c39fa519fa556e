"""What is round the engine: a Dagster run, Ray; and peak memory. Serves in a process of its own.

    python -m benchmarks.scoring.overhead FOLDER SHARDS PAIRS
    python -m benchmarks.scoring.overhead memory FOLDER SHARDS

`direct`, `dagster`: the same shards by `Scorer.score_all`, and by the job `score_batch`. `here`, `ray`: the same by
`score_works`, timed from the first published shard to the last, so that start-up is apart. A tiny model: what is
round the engine costs the same with a large one. `memory` scores many shards and says how much memory that took.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.scoring.serving import Work, serve

SCORED = ("scored_shards", "scored_shards_shards")  # folders of the store that scoring makes
_MODEL = {"pretrain_steps": 2, "train_steps": 2, "batch_images": 8}  # nobody looks at its rewards
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Instance:
    """A home with an indexed batch of rendered shards, a promoted model, and a Dagster instance."""

    def __init__(self, home: Path, shards: int, pairs: int) -> None:
        from assets import reward_model
        from assets.coco_hf_annotations import publish_annotations
        from compalign_dagster import decisions, latest
        from compalign_dagster.cli.instance import prepare
        from compalign_dagster.definitions import build_defs
        from compalign_dagster.samples.crawl import write_sample_crawl
        from compalign_dagster.settings import load
        from resources.accelerator import Accelerator
        from resources.storage import Storage

        write_sample_crawl(home, seed=3, pairs=pairs, judged_images=40, evaluation_pairs=4, shard_pairs=pairs)
        _repeat(home / "landing", shards)
        settings = load(
            home=home, device="cpu", batch_max_shards=2 * shards, settle_seconds=0, batch_wait_minutes=0, **_MODEL
        )
        prepare(settings)
        self._definitions = build_defs(settings=settings)
        self.storage = Storage.from_settings(settings)
        self.accelerator = Accelerator.from_settings(settings)
        self.run("land_batch", None)
        self.batch = self._batch()
        self.run("index_batch", self.batch)
        publish_annotations(self.storage, settings)
        model, _ = reward_model.publish_reward_model(self.storage, self.accelerator, settings)
        value = {"manifest": model.manifest_key, "model_version": model.facts["model_version"]}
        decisions.decide(self.storage.store, "promoted_model", value, after=0)
        self.pairs = latest.require(self.storage.store, "raw_crawl", self.batch).facts["pairs"]
        self._store = home / "store"

    def run(self, job: str, partition: str | None) -> None:
        """Run a job in this process on the instance on disk."""
        import dagster as dg

        with dg.DagsterInstance.get() as instance:
            definition = self._definitions.resolve_job_def(job)
            definition.execute_in_process(instance=instance, partition_key=partition, run_config=_QUIET)

    def score(self) -> int:
        """The job `score_batch`; pairs."""
        self.run("score_batch", self.batch)
        return self.pairs

    def forget(self) -> None:
        """As if nothing had been scored."""
        for kind in SCORED:
            for path in self._store.rglob(kind):
                shutil.rmtree(path, ignore_errors=True)

    def direct(self) -> int:
        """Score with the engine alone; pairs."""
        from compalign_dagster import parquet
        from compalign_dagster.crawl.live import indexed_shards
        from compalign_dagster.crawl.shards import Shard
        from compalign_dagster.scoring.work import load_scorer

        places, model = self._places(), self._model()
        scorer = load_scorer(places, model.manifest_key, self.accelerator.scoring_config())

        def jobs() -> Iterator[Any]:
            for item in indexed_shards(places.store, self.batch):
                shard = Shard(item.shard, places.landing, item.shard, item.delivery.stamp)
                yield shard, parquet.read(places.store.fetch(item.pairs_key))

        return sum(len(found.scores) + len(found.quarantine) for found in scorer.score_all(jobs()))

    def works(self, engine: str) -> float:
        """Score and publish by an engine of `where.py`; seconds from the first shard's manifest to the last's."""
        from compalign_dagster.crawl.live import indexed_shards
        from compalign_dagster.scoring.where import Where, score_works
        from compalign_dagster.scoring.work import ShardWork

        places, model, changes = self._places(), self._model(), self.accelerator.changes_bytes()
        works = [ShardWork.of(item, places, model, changes) for item in indexed_shards(places.store, self.batch)]
        where = Where(engine=engine, workers=1)
        done = list(score_works(works, self.accelerator.scoring_config(), where, places=places))
        at = sorted((self._store / item.manifest_key).stat().st_mtime for _, item, _ in done)
        return at[-1] - at[0]

    def _batch(self) -> str:
        from compalign_dagster.crawl.batches import read_log

        return read_log(self.storage.store)[-1].key

    def _places(self) -> Any:
        from compalign_dagster.scoring.work import Places

        return Places(self.storage.store, self.storage.landing)

    def _model(self) -> Any:
        from compalign_dagster.reward.promoted import promoted

        return promoted(self.storage.store)


def _repeat(landing: Path, shards: int) -> None:
    """Land so many shards in all: those that are there under further names, so that rendering takes no time."""
    there = sorted(landing.rglob("*.tar"))
    for at in range(shards - len(there)):
        source = there[at % len(there)]
        os.link(source, source.with_name(f"9{at:04d}.tar"))


def works(instance: Instance) -> dict[str, Work]:
    """The four ways; each begins with nothing scored."""

    def after_forgetting(run: Callable[[], dict[str, Any]]) -> Work:
        def prepare() -> Callable[[], dict[str, Any]]:
            instance.forget()
            return run

        return prepare

    return {
        "direct": after_forgetting(lambda: {"pairs": instance.direct()}),
        "dagster": after_forgetting(lambda: {"pairs": instance.score()}),
        "here": after_forgetting(lambda: {"steady_seconds": instance.works("here")}),
        "ray": after_forgetting(lambda: {"steady_seconds": instance.works("ray")}),
    }


def memory(folder: Path, shards: int) -> None:
    """Score `shards` hard links of the set `one`; say the peak of this process, MiB."""
    from benchmarks.scoring.sides import indexed
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.scoring.engine import Scorer, ScoringConfig

    names = [f"peak-{at:03d}" for at in range(shards)]
    for name in names:
        if not (folder / f"{name}.tar").exists():
            os.link(folder / "one.tar", folder / f"{name}.tar")
    config = ScoringConfig(precision="fp32", device="cpu", threads=1)
    scorer, started = Scorer(load_model(folder / "reward"), "0" * 64, config), time.monotonic()
    jobs = ((shard, index.pairs) for shard, index in (indexed(folder, name) for name in names))
    scored = sum(len(found.scores) for found in scorer.score_all(jobs))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"pairs": scored, "peak_mib": peak, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        import torch

        torch.set_num_threads(1)
        os.environ["COMPALIGN_HOME"] = sys.argv[1]
        serve(works(Instance(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
