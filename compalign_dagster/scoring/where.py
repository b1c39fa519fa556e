"""Where shards are scored: here, by a process for each device of this machine, or by actors on a Ray cluster.

What belongs here: the choice, what is done already, and progress over all of it. What does not: how a shard is
scored and published (`work.py`), which is the same everywhere.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from compalign_dagster.artifacts import Artifact
from compalign_dagster.compute import Needs, pick_device, worker_devices
from compalign_dagster.errors import InputError
from compalign_dagster.scoring.work import (
    PairsDone,
    Places,
    ShardWork,
    load_scorer,
    needs_most,
    published,
    score_and_publish_all,
)

if TYPE_CHECKING:
    from compalign_dagster.scoring.config import ScoringConfig

ENGINES = ("here", "devices", "ray")
_LOOKS = 16  # questions to the store at once

Progress = Callable[[int, int, str], None]  # done, total, of what


@dataclass(frozen=True)
class Where:
    """Which engine scores, on how much of it. `workers` None: one for each GPU, or one where there is none."""

    engine: str = "here"
    workers: int | None = None  # processes or actors
    ray_address: str | None = None  # of a running cluster; None starts one on this machine
    needs: Needs = field(default_factory=Needs)  # of each worker on a cluster
    stall_seconds: float = 1800.0  # without any progress, after which a process or an actor counts as dead

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(
                "setting engine",
                expected=f"one of {', '.join(ENGINES)}",
                found=repr(self.engine),
                remedy="Choose one.",
            )


def score_works(
    works: Sequence[ShardWork],
    config: "ScoringConfig",
    where: Where | None = None,
    *,
    places: Places | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Generator[tuple[ShardWork, Artifact, bool], None, None]:
    """Each work, its published artifact and whether it was there before, as they are finished.

    `config.device` is a wish (`auto`, `cpu`, `cuda`); a GPU that was asked for and is not there is an `InputError`
    before anything is loaded. `places` are the opened stores that the works name, for this process alone: others
    open their own. All works must be of one model and of one cascade at most. `progress` counts pairs of all works
    together.
    """
    where = where or Where()
    if where.engine != "ray":  # there the actors have the devices
        pick_device(config.device)
    count, left = Count(works, progress), []
    for work, found in _looked_up(works, places):
        if found is None:
            left.append(work)
            continue
        count.was_there(work)
        yield work, found, True
    count.begin()
    if left:
        with closing(_engine(where, config, left, places, count.pairs_done)) as results:  # its processes end with it
            for work, artifact in results:
                count.finished(work)
                yield work, artifact, False


def _looked_up(works: Sequence[ShardWork], places: Places | None) -> Iterator[tuple[ShardWork, Artifact | None]]:
    """Each work and what was published of it, asked ahead: an answer of a bucket takes tens of milliseconds."""
    if not works:
        return
    at = places or Places.of(works[0])
    pool = ThreadPoolExecutor(_LOOKS, thread_name_prefix="look")
    try:
        yield from zip(works, pool.map(lambda work: published(at, work), works), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _engine(
    where: Where, config: "ScoringConfig", works: list[ShardWork], places: Places | None, pairs_done: PairsDone
) -> Generator[tuple[ShardWork, Artifact], None, None]:
    if where.engine == "here":
        here = _on(config, pick_device(config.device))
        most = needs_most(works)
        scorer = load_scorer(places or Places.of(most), most.model, here, most.cascade)
        return score_and_publish_all(scorer, works, places, pairs_done)
    if where.engine == "devices":
        from compalign_dagster.scoring.devices import score_on_devices

        devices = worker_devices(config.device, where.workers)
        configs = [_on(config, device) for device in devices]
        return score_on_devices(works, configs, places, pairs_done, stall_seconds=where.stall_seconds)
    from compalign_dagster.scoring.on_ray import score_on_ray

    return score_on_ray(works, config, where, places, pairs_done)


def _on(config: "ScoringConfig", device: str) -> "ScoringConfig":
    return replace(config, device=device)


class Count:
    """Pairs done over all works, those of unfinished shards among them.

    What was there is counted before the first word, so that it is in no rate.
    """

    def __init__(self, works: Sequence[ShardWork], progress: Progress) -> None:
        self._total, self._progress = sum(work.pairs for work in works), progress
        self._done, self._partly = 0, dict[str, int]()

    def was_there(self, work: ShardWork) -> None:
        """A shard was published before."""
        self._done += work.pairs

    def begin(self) -> None:
        """All that was there is counted."""
        self._tell()

    def pairs_done(self, key: str, done: int) -> None:
        """A shard that is being scored has come so far; another worker may begin it anew."""
        self._partly[key] = done
        self._tell()

    def finished(self, work: ShardWork) -> None:
        """A shard is published."""
        self._partly.pop(work.key, None)
        self._done += work.pairs
        self._tell()

    def _tell(self) -> None:
        self._progress(min(self._done + sum(self._partly.values()), self._total), self._total, "pairs")
