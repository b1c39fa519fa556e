"""A worker process for each device of this machine.

Workers are spawned, for CUDA does not survive a fork. Each has a pipe of its own: a queue that they shared would
stay locked when one is killed. A worker whose parent is gone finds its pipe closed and ends.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring.config import decoders
from compalign_dagster.scoring.sharing import Failed, Shares
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

_SECONDS_BETWEEN_WORDS = 0.5  # of a worker's progress
_SECONDS_BETWEEN_LOOKS = 10.0  # whether one of them hangs
_SECONDS_TO_END = 10.0  # for a worker to end its read and remove its temporary files

log = logging.getLogger(__name__)


def score_on_devices(
    works: Sequence[ShardWork],
    configs: Sequence["ScoringConfig"],
    places: Places | None,
    pairs_done: PairsDone,
    *,
    stall_seconds: float = math.inf,
) -> Generator[tuple[ShardWork, Artifact], None, None]:
    """Each work with its artifact as it is published, by one process for each of `configs`.

    Processes share the cores. The shards of a worker that is dead, or for `stall_seconds` has not come further, go to
    the others. Raises what a worker raised, and `CompalignError` when none is left.
    """
    workers = _start(needs_most(works), _sharing_cores(configs))
    shares = Shares(works, len(workers))
    try:
        while shares.unfinished:
            _feed(workers, shares)
            for worker in [item for item in workers if item.silent() > stall_seconds and not item.pipe.poll()]:
                workers.remove(worker)
                worker.kill()
                shares.hung(worker, worker.name, stall_seconds)
            for ready in wait([worker.pipe for worker in workers], min(stall_seconds, _SECONDS_BETWEEN_LOOKS)):
                worker = next(item for item in workers if item.pipe is ready)
                try:
                    word, *rest = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    workers.remove(worker)
                    shares.died(worker, worker.name, worker.why_dead())
                    continue
                worker.heard = time.monotonic()
                if word == "pairs":
                    pairs_done(*rest)
                elif word == "free":
                    worker.free = True
                elif word == "error":
                    raise Failed(*rest).at(worker.name)
                else:
                    work = shares.done(worker, *rest)
                    found = published(places or Places.of(work), work)
                    assert found is not None, "a worker says that it is published"
                    yield work, found
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _sharing_cores(configs: Sequence["ScoringConfig"]) -> list["ScoringConfig"]:
    """On a CPU each computes on its share of the cores, beside a GPU it decodes on them."""
    cores = max(1, len(os.sched_getaffinity(0)) // len(configs))
    return [
        replace(config, threads=config.threads or cores)
        if config.device == "cpu"
        else replace(config, decoders=config.decoders or decoders(config.device, cores))
        for config in configs
    ]


class _Worker:
    """A process, seen from its parent."""

    def __init__(self, name: str, process: Any, pipe: Connection) -> None:
        self.name, self.process, self.pipe, self.free = name, process, pipe, False
        self.heard = time.monotonic()

    def silent(self) -> float:
        """Seconds since it last came further; 0 where it has nothing to do."""
        return 0.0 if self.free else time.monotonic() - self.heard

    def give(self, works: list[ShardWork]) -> None:
        self.free, self.heard = False, time.monotonic()
        try:
            self.pipe.send(works)
        except (BrokenPipeError, ConnectionResetError):
            log.debug("%s is gone; its pipe says so when it is read", self.name)

    def why_dead(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it at once: one that hangs may not hear anything gentler."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join(_SECONDS_TO_END)
        self.process.kill()  # one that hangs; else it is gone
        self.process.join()


def _start(work: ShardWork, configs: Sequence["ScoringConfig"]) -> list[_Worker]:
    context, workers = get_context("spawn"), []
    for at, config in enumerate(configs, start=1):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work, config), daemon=True)
        process.start()
        theirs.close()  # or its end would never be seen
        name = f"scoring worker {at} of {len(configs)} ({config.device}, process {process.pid})"
        log.info("%s started", name)
        workers.append(_Worker(name, process, ours))
    return workers


def _feed(workers: list[_Worker], shares: Shares) -> None:
    if not workers:
        raise CompalignError(
            "scoring workers",
            expected="one that lives",
            found=f"none, and {shares.unfinished} shards to score",
            remedy="What they died of is in the log. What is published stays: run again.",
        )
    for worker in workers:
        if worker.free and (works := shares.give(worker)):
            worker.give(works)


def _serve(pipe: Connection, any_work: ShardWork, config: "ScoringConfig") -> None:
    """The life of a worker: load the model, then score what it is given until its parent has enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends it
    signal.signal(signal.SIGTERM, _leave)
    try:
        _score(pipe, any_work, config)
    except Exception as error:
        with suppress(OSError):  # nobody is there any more
            pipe.send(("error", *Failed.of(error)))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(*_: object) -> None:
    """End as a process does that is done: its temporary files go, copies from a bucket among them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: it is leaving
    raise SystemExit


def _score(pipe: Connection, any_work: ShardWork, config: "ScoringConfig") -> None:
    places = Places.of(any_work)
    scorer = load_scorer(places, any_work.model, config, any_work.cascade)
    said = 0.0

    def pairs_done(key: str, done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS_BETWEEN_WORDS:
            said = time.monotonic()
            pipe.send(("pairs", key, done))

    while True:
        pipe.send(("free",))
        for work, _ in score_and_publish_all(scorer, pipe.recv(), places, pairs_done):
            pipe.send(("done", work.key))
