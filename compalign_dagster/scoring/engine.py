"""Scoring shards: images read and decoded ahead, each encoded once for all of its captions, in bounded memory.

Batches never span shards and depend on no timing: on one thread the same pairs give the same bytes. What does not
belong here: which shards to score, artifacts, the ledger, processes and machines.
"""

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from compalign_dagster.compute import pick_device
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.images import ImageRejected, decode, no_memory
from compalign_dagster.reward.model import Progress, RewardModel, no_progress
from compalign_dagster.scoring.config import PRECISIONS, ScoringConfig, check_precision, decoders
from compalign_dagster.scoring.feed import Feed, Picture
from compalign_dagster.scoring.forward import Forward
from compalign_dagster.scoring.meter import Meter, in_words
from compalign_dagster.scoring.reading import Job
from compalign_dagster.scoring.results import ShardScores, summary, tables, total
from compalign_dagster.scoring.tables import FIGURES

__all__ = [
    "PRECISIONS",
    "Scorer",
    "ScoringConfig",
    "ShardScores",
    "check_precision",
    "score_shard",
    "summary",
    "total",
]

log = logging.getLogger(__name__)


class Scorer:
    """A model on its device in its precision, for any number of shards, one caller at a time.

    `config` afterwards names the device that was picked. `InputError` for a device that is not there or a
    precision that it cannot do.
    """

    def __init__(self, model: RewardModel, model_version: str, config: ScoringConfig) -> None:
        self.config = replace(config, device=pick_device(config.device))
        check_precision(config.precision, self.config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.model_version = model_version
        self._forward = Forward(model, self.config, torch.device(self.config.device))
        self._batch = self._forward.images
        self._lag = 0 if self.config.device == "cpu" else 1  # batches that a GPU computes while the next is launched

    @property
    def model(self) -> RewardModel:
        """The model as it computes."""
        return self._forward.model

    def score(self, shard: Shard, pairs: pa.Table, *, progress: Progress = no_progress) -> ShardScores:
        """One reward for each of the shard's `pairs` (PAIRS), in their order.

        A pair whose image does not decode, or whose reward is not finite, is quarantined with its reason.
        `progress` counts pairs; a word that brings none says that it has come further all the same.

        Raises:
            InputError: for pairs of another shard, or a shard that is shorter than its index says.
            StoreError: when the shard cannot be read, or is another object than was indexed.
            CompalignError: when not even one image and one caption fit into the device's memory, or an image into
                that of the machine.
            ConservationError: if a pair were lost.
        """
        (found,) = self.score_all([(shard, pairs)], progress=progress)
        return found

    def score_all(
        self, jobs: Iterable[tuple[Shard, pa.Table]], *, progress: Progress = no_progress
    ) -> Generator[ShardScores]:
        """`score` for each of the jobs, in their order; the next shard is read and decoded while this one computes.

        `jobs` is iterated in a thread of its own. Closing the iterator ends all threads, after the read under way.
        """
        with self._feed(jobs) as feed:
            while True:
                meter = Meter()
                job = feed.next_job(meter)
                if job is None:
                    return
                yield self._shard(feed, job, meter, progress)

    def embed_all(self, jobs: Iterable[tuple[Shard, pa.Table]]) -> Generator[tuple[list[int], np.ndarray]]:
        """For each of the jobs the unit vectors of its images, float32 [N, D], and of each a row that shows it, [N].

        Images that do not decode are left out. Otherwise as `score_all`.
        """
        with self._feed(jobs) as feed:
            while (job := feed.next_job(meter := Meter())) is not None:
                rows: list[int] = []
                found: list[Tensor] = []
                with self._forward.computing():
                    for batch in _batches(feed.pictures(meter), self._batch, {}):
                        found.append(self._forward.embed([image for image, _ in batch], job.shard.name))
                        rows += [own[0] for _, own in batch]
                    vectors = torch.cat(found).cpu().numpy() if found else np.empty((0, 0), np.float32)
                yield rows, vectors

    def _feed(self, jobs: Iterable[tuple[Shard, pa.Table]]) -> Feed:
        threads = self.config.decoders or decoders(self.config.device, len(os.sched_getaffinity(0)))
        return Feed(jobs, self._prepare, decoders=threads, ahead=max(self.config.queue_images, self._batch))

    def _prepare(self, data: bytes) -> Tensor:
        image = decode(data, max_pixels=self.config.image_pixels, side=self.model.image_side)
        try:
            return self.model.prepare(image)
        except MemoryError as error:
            raise no_memory(data) from error

    def _shard(self, feed: Feed, job: Job, meter: Meter, progress: Progress) -> ShardScores:
        halved, what = self._forward.halved, f"pairs of {job.shard.name}"
        captions = [str(text) for text in job.pairs["caption"].to_pylist()]
        found = np.full((len(captions), len(FIGURES)), np.nan, np.float32)
        refused: dict[int, tuple[str, str]] = {}
        computing: deque[tuple[list[int], Tensor]] = deque()
        done = 0

        def collect(most: int) -> None:
            nonlocal done
            while len(computing) > most:
                rows, figures = computing.popleft()
                found[rows] = figures.cpu().numpy()
                done += len(rows)
                progress(done + len(refused), len(captions), what)

        with self._forward.computing():
            with meter.during("forward"):
                counts = self.model.token_counts(captions)
                texts = self._forward.read(captions, counts, what, lambda: progress(0, len(captions), what))
            for batch in _batches(feed.pictures(meter), self._batch, refused):
                with meter.during("forward"):
                    images, owned = [image for image, _ in batch], [rows for _, rows in batch]
                    scored = self._forward.score(images, texts, owned, what)
                    computing.append(([row for rows in owned for row in rows], scored))
                    collect(self._lag)
        with meter.during("forward"):
            collect(0)
        over_long = sum(count > self.model.config.max_caption_tokens for count in counts)
        with meter.during("write"):
            scores, quarantine = tables(job.pairs, found, done, refused, self.model_version)
        if done < len(captions):  # the last images were refused
            progress(len(captions), len(captions), what)
        seconds, stages = sum(meter.seconds.values()), meter.shares()
        log.info(
            "scored %d pairs of %s in %.1f s, %d quarantined; time by what was waited for: %s",
            len(scores),
            job.shard.name,
            seconds,
            len(quarantine),
            in_words(stages),
        )
        return ShardScores(
            scores,
            quarantine,
            seconds,
            over_long,
            stages,
            self._forward.images,
            self._forward.halved - halved,
            self._forward.device_name,
        )


def score_shard(
    model: RewardModel,
    model_version: str,
    shard: Shard,
    pairs: pa.Table,
    config: ScoringConfig | None = None,
    *,
    progress: Progress = no_progress,
) -> ShardScores:
    """`Scorer.score` for a single shard."""
    return Scorer(model, model_version, config or ScoringConfig()).score(shard, pairs, progress=progress)


def _batches(
    pictures: Iterable[Picture], size: int, refused: dict[int, tuple[str, str]]
) -> Iterator[list[tuple[Tensor, list[int]]]]:
    """Groups of prepared images with the rows of their pairs; the rows of undecodable ones go to `refused`."""
    waiting: list[tuple[Tensor, list[int]]] = []
    for picture in pictures:
        try:
            waiting.append((picture.prepared.result(), picture.rows))
        except ImageRejected as error:
            refused.update({row: (error.reason, error.detail) for row in picture.rows})
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
