"""One shard's scoring as plain values, and carrying it out: read the pairs, score them, publish once.

Every engine runs what is here: the step's process, a worker of a device, an actor on another machine. What does
not belong here: who carries out which shard (`where.py`), how scores are made (`engine.py`).
"""

import io
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.batches import ShardStamp
from compalign_dagster.crawl.live import IndexedShard, require_delivered
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import CompalignError, ConservationError
from compalign_dagster.scoring.in_force import Cascade, turns_down, without
from compalign_dagster.scoring.tables import CODE_VERSION
from compalign_dagster.scoring.usage import Usage
from compalign_dagster.store import Store, open_store
from compalign_dagster.versions import work_key

if TYPE_CHECKING:
    import pyarrow as pa

    from compalign_dagster.scoring.cascaded import CascadedScorer
    from compalign_dagster.scoring.config import ScoringConfig
    from compalign_dagster.scoring.engine import Scorer
    from compalign_dagster.scoring.results import ShardScores

SHARD_KIND = "scored_shards_shards"

PairsDone = Callable[[str, int], None]  # work key, how many of its pairs are done


@dataclass(frozen=True)
class ShardWork:
    """All that another process needs to know to score one shard; picklable, a few hundred bytes."""

    key: str  # work key: what is published under it is this work's outcome, whoever did it
    whole_key: str  # the same without a cascade: the shard's rewards, where it was scored whole before
    shard: str
    delivery: ShardStamp  # the bytes that were indexed
    landing: str  # URL
    store: str  # URL
    pairs_key: str
    index_version: str
    pairs: int
    model: str  # key of its manifest in the store
    config: Mapping[str, Any]  # what changes bytes, a cascade among it

    @property
    def cascade(self) -> Cascade | None:
        """The cascade that may turn some of the pairs down, where there is one."""
        return Cascade.of(self.config)

    @classmethod
    def of(cls, item: IndexedShard, places: "Places", model: Artifact, config: Mapping[str, Any]) -> "ShardWork":
        """The work of scoring an indexed shard with a model; a cascade that knows nothing of its corpus is left out."""

        def key_of(config: Mapping[str, Any]) -> str:
            inputs = [model.facts["model_version"], item.shard, item.index_version]
            return work_key(SHARD_KIND, code_version=CODE_VERSION, inputs=inputs, config=config)

        whole = without(config)
        config = config if turns_down(config, item.shard) else whole
        return cls(
            key_of(config),
            key_of(whole),
            item.shard,
            item.delivery,
            places.landing.url,
            places.store.url,
            item.pairs_key,
            item.index_version,
            item.pairs,
            model.manifest_key,
            dict(config),
        )


@dataclass(frozen=True)
class Places:
    """The opened stores that works name by URL."""

    store: Store
    landing: Store

    @classmethod
    def of(cls, work: ShardWork) -> "Places":
        """Opened anew, in a process that has nothing but the work; buckets by boto3's own chain."""
        return cls(open_store(work.store), open_store(work.landing))


def published(places: Places, work: ShardWork) -> Artifact | None:
    """What was published of this work, by whomever; None while nothing was.

    A shard that was scored whole has more to say than a cascade could, and is not scored again under one.
    """
    found = artifacts.find(places.store, SHARD_KIND, work.whole_key)
    return found if found or work.key == work.whole_key else artifacts.find(places.store, SHARD_KIND, work.key)


def needs_most(works: Sequence[ShardWork]) -> ShardWork:
    """One of the works, of which a scorer is loaded that can do all of them: with a cascade, where any has one."""
    return next((work for work in works if work.cascade), works[0])


def load_scorer(
    places: Places, model: str, config: "ScoringConfig", cascade: Cascade | None = None
) -> "Scorer | CascadedScorer":
    """The model whose manifest has this key, on the device that `config` names; behind the cheap one of a cascade."""
    scorer = _load(places, model, config)
    if cascade is None:
        return scorer
    from compalign_dagster.scoring.cascaded import CascadedScorer

    return CascadedScorer(_load(places, cascade.model, config), scorer, cascade)


def _load(places: Places, model: str, config: "ScoringConfig") -> "Scorer":
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.scoring.engine import Scorer

    artifact = _model(places, model)
    with tempfile.TemporaryDirectory() as folder:
        network = load_model(artifact.checkout(Path(folder, "model")))
    return Scorer(network, artifact.facts["model_version"], config)


def score_and_publish_all(
    scorer: "Scorer | CascadedScorer",
    works: Iterable[ShardWork],
    places: Places | None = None,
    pairs_done: PairsDone = lambda key, done: None,
) -> Generator[tuple[ShardWork, Artifact], None, None]:
    """Each work with its artifact as it is published; the next shard is read while the scorer computes this one.

    A work that was published meanwhile costs one look at the store. Raises `CompalignError` for a shard that is
    not the delivery that was indexed: on a disk it may be written over in place, even while it is read.
    """
    running: deque[ShardWork] = deque()  # handed to the scorer, whose results come in the same order
    reused: deque[tuple[ShardWork, Artifact]] = deque()
    usage = Usage(scorer.config.device)

    def jobs() -> Iterator[tuple[Shard, "pa.Table"]]:
        for work in works:
            at = places or Places.of(work)
            found = published(at, work)
            if found:
                reused.append((work, found))
                continue
            job = _read(work, at)
            running.append(work)
            yield job

    def progress(done: int, _total: int, _what: str) -> None:
        usage.look()
        if running:
            pairs_done(running[0].key, done)

    results: Any = scorer.score_all(jobs(), progress=progress)
    with closing(results):  # its threads end with it
        for result in results:
            work = running.popleft()
            yield work, publish_scores(work, places or Places.of(work), result, usage.since_last())
            while reused:
                yield reused.popleft()
    yield from reused


def _read(work: ShardWork, places: Places) -> tuple[Shard, "pa.Table"]:
    require_delivered(places.landing, work.delivery)
    shard = Shard(work.shard, places.landing, work.shard, work.delivery.stamp)
    # Not by `fetch`, whose copies from a bucket stay: a worker reads thousands of tables once each.
    return shard, parquet.read(io.BytesIO(places.store.read(work.pairs_key)))


def publish_scores(
    work: ShardWork, places: Places, result: "ShardScores", usage: Mapping[str, float | None]
) -> Artifact:
    """Publish a scored shard under its work key; the artifact of whoever was first."""
    require_delivered(places.landing, work.delivery)
    tables = {"scores": result.scores, "quarantine": result.quarantine}
    if result.rejected and not work.cascade:  # the scorer's is not the work's
        raise ConservationError(
            f"scores of shard {work.shard}",
            expected=f"all {work.pairs} pairs of a shard that is scored whole",
            found=f"{len(result.rejected)} of them turned down",
            remedy="This is a fault of the program; please report it.",
        )
    models, counts = [work.model], {}
    if work.cascade and result.rejected is not None and result.audited is not None:
        tables |= {"rejected": result.rejected, "audited": result.audited}
        models, counts = (
            [work.model, work.cascade.model],
            {name: tables[name].num_rows for name in ("rejected", "audited")},
        )
    with tempfile.TemporaryDirectory() as folder:
        return artifacts.publish(
            places.store,
            SHARD_KIND,
            work.key,
            {
                f"{name}.parquet": parquet.write(table, Path(folder, f"{name}.parquet"))
                for name, table in tables.items()
            },
            code_version=CODE_VERSION,
            inputs=[
                artifacts.Input("raw_crawl_shards", work.pairs_key, work.index_version),
                *(_model(places, key).as_input() for key in models),
            ],
            config=work.config,
            facts={
                "scored": result.scores.num_rows,
                "quarantined": result.quarantine.num_rows,
                **counts,
                "over_long": result.over_long,
                "seconds": round(result.seconds, 3),
                "device": result.device,
                "worker": f"{socket.gethostname()}, process {os.getpid()}",
                "batch_images": result.batch_images,
                "halved": result.halved,
                "stages": {name: round(share, 4) for name, share in result.stages.items()},
                **usage,
            },
        )


def _model(places: Places, key: str) -> Artifact:
    model = artifacts.load(places.store, key)
    if model is None:
        raise CompalignError(
            f"reward model {key} in {places.store.url}",
            expected="the manifest of a model that scores",
            found="none",
            remedy="Every process that scores must see the same store: a bucket, or a folder that all machines mount.",
        )
    return model
