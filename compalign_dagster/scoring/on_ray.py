"""Actors on a Ray cluster, each with the model on a device; on one machine too.

Actors take names of shards, read and publish by themselves, and answer with work keys: nothing else passes through
the process that asks. docs/adr/0013 says why these are plain actors and not a Ray Data pipeline. What does not belong
here: installing this package on the cluster's machines, and stores that they do not all see.
"""

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compalign_dagster.artifacts import Artifact
from compalign_dagster.compute import Needs, pick_device
from compalign_dagster.errors import CompalignError, InputError
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
    from compalign_dagster.scoring.where import Where

_SECONDS_BETWEEN_LOOKS = 2.0  # at how far an actor is
_PATIENCE_SECONDS = 600.0  # without any actor that lives
_MOST_DEATHS = 4  # for each actor, while no shard is finished
_MAY_HAVE_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # off by default on those two; elsewhere it does the same

log = logging.getLogger(__name__)


def score_on_ray(
    works: Sequence[ShardWork],
    config: "ScoringConfig",
    where: "Where",
    places: Places | None,
    pairs_done: PairsDone,
) -> Generator[tuple[ShardWork, Artifact], None, None]:
    """Each work with its artifact as it is published, by `where.workers` actors that each have what its needs say.

    Shards of an actor that died or hangs, or whose machine died, go to others, and another actor takes its place where
    the cluster has room. Raises what an actor raised, `InputError` where the cluster cannot hold one actor, and
    `CompalignError` when none has lived for ten minutes.
    """
    with _cluster(where.ray_address, where.workers) as ray:
        config, needs, workers = _fitting(ray, config, where.needs, where.workers)
        crew = _Crew(ray, works, config, needs, workers, where.stall_seconds)
        try:
            while crew.shares.unfinished:
                for work in crew.turn(pairs_done):
                    found = published(places or Places.of(work), work)
                    assert found is not None, "an actor says that it is published"
                    yield work, found
        finally:
            crew.end()


class Actor:
    """What lives on the cluster: a scorer, and how far it is. Two threads: one scores, one answers."""

    def __init__(self, model: str, any_work: ShardWork, config: "ScoringConfig") -> None:
        self._model, self._work, self._config = model, any_work, config
        self._scorer: Any = None
        self._finished = deque[str]()
        self._at: tuple[str, int] | None = None
        self._beats = 0

    def load(self) -> str | Failed:
        """Load the model; where this is."""
        try:
            self._places = Places.of(self._work)
            device = pick_device(self._config.device)
            config = replace(self._config, device=device)
            self._scorer = load_scorer(self._places, self._model, config, self._work.cascade)
        except Exception as error:
            return Failed.of(error)
        return f"{device}, process {os.getpid()} on {socket.gethostname()}"

    def score(self, works: list[ShardWork]) -> Failed | None:
        """Score and publish; `look` says what is done."""
        try:
            for work, _ in score_and_publish_all(self._scorer, works, self._places, self._come):
                self._finished.append(work.key)
                self._at = None  # or its pairs would count twice
        except Exception as error:
            return Failed.of(error)
        return None

    def look(self) -> tuple[list[str], tuple[str, int] | None, int]:
        """Work keys finished since the last look, the unfinished one with its pairs that are done, and a pulse.

        The pulse is the number of steps so far: one that stands still is that of an actor that hangs.
        """
        finished = [self._finished.popleft() for _ in range(len(self._finished))]  # the other thread may add meanwhile
        return finished, self._at, self._beats

    def _come(self, key: str, done: int) -> None:
        self._at, self._beats = (key, done), self._beats + 1


@dataclass(eq=False)
class _Member:
    """An actor, seen from the process that asks."""

    handle: Any
    name: str
    busy: bool = True
    looked: float = 0.0
    beats: int = 0  # its pulse when it last came further
    moved: float = math.inf  # when that was; nothing to score, nothing to wait for


class _Crew:
    """The actors, the answers that are due from them, and their shares."""

    def __init__(
        self,
        ray: Any,
        works: Sequence[ShardWork],
        config: "ScoringConfig",
        needs: Needs,
        workers: int,
        stall_seconds: float = math.inf,
    ) -> None:
        self.shares, self._stall_seconds = Shares(works, workers), stall_seconds
        self._ray, self._workers, self._lived = ray, workers, time.monotonic()
        self._new = (
            ray.remote(Actor)
            .options(num_cpus=1, max_concurrency=2, scheduling_strategy="SPREAD", **needs.ray_options())
            .remote
        )
        self._arguments = (works[0].model, needs_most(works), config)
        self._due: dict[Any, tuple[str, _Member]] = {}  # answer -> what was asked, of whom
        self._members: list[_Member] = []
        self._started, self._deaths = 0, 0
        for _ in range(workers):
            self._start()

    def turn(self, pairs_done: PairsDone) -> Iterator[ShardWork]:
        """Wait for answers for a while, act on them, and yield what is published."""
        self._ask()
        ready, _ = self._ray.wait(list(self._due), timeout=_SECONDS_BETWEEN_LOOKS)
        for answer in ready:
            asked, member = self._due.pop(answer)
            if member not in self._members:
                continue  # it died, and other answers that were due of it say so again
            try:
                found = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                self._died(member, error)
                continue
            if isinstance(found, Failed):
                raise found.at(member.name)
            self._lived = time.monotonic()
            if asked == "look":
                keys, at, beats = found
                if keys or beats != member.beats:
                    member.beats, member.moved = beats, time.monotonic()
                self._deaths = 0 if keys else self._deaths
                yield from [self.shares.done(member, key) for key in keys]
                if at and at[0] not in keys:
                    pairs_done(*at)
            else:
                if asked == "load":
                    member.name += f" ({found})"
                    log.info("%s is ready", member.name)
                else:
                    self._due[member.handle.look.remote()] = ("look", member)
                member.busy, member.moved = False, math.inf
        self._watch()

    def end(self) -> None:
        """Take the actors away."""
        for member in self._members:
            self._ray.kill(member.handle)

    def _start(self) -> None:
        self._started += 1
        member = _Member(self._new(*self._arguments), f"scoring actor {self._started}")
        self._members.append(member)
        self._due[member.handle.load.remote()] = ("load", member)

    def _ask(self) -> None:
        now = time.monotonic()
        looking = {id(member) for asked, member in self._due.values() if asked == "look"}
        for member in self._members:
            if id(member) in looking:
                continue
            if not member.busy and (works := self.shares.give(member)):
                member.busy, member.moved = True, now
                self._due[member.handle.score.remote(works)] = ("score", member)
            elif member.busy and now - member.looked >= _SECONDS_BETWEEN_LOOKS:
                member.looked = now
                self._due[member.handle.look.remote()] = ("look", member)

    def _hung(self, member: _Member) -> None:
        self._members.remove(member)
        self._ray.kill(member.handle)
        self.shares.hung(member, member.name, self._stall_seconds)
        self._start()

    def _died(self, member: _Member, error: Exception) -> None:
        self._members.remove(member)
        self._ray.kill(member.handle)  # one that only could not be reached must not go on
        why = " ".join(str(error).split())[:300]
        self.shares.died(member, member.name, why)
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS * self._workers:
            raise CompalignError(
                "scoring actors",
                expected="actors that live",
                found=f"{self._deaths} dead since a shard was finished, the last one: {why}",
                remedy="What they died of is in the log. What is published stays: run again.",
            )
        self._start()

    def _watch(self) -> None:
        for member in [item for item in self._members if time.monotonic() - item.moved > self._stall_seconds]:
            self._hung(member)
        if time.monotonic() - self._lived > _PATIENCE_SECONDS:
            raise CompalignError(
                "Ray cluster",
                expected="room for one scoring actor",
                found=f"none for {_PATIENCE_SECONDS:.0f} s; there is {_there(self._ray)}",
                remedy="Add a machine, or ask for less. What is published stays: run again.",
            )


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected: to what this process is connected to already, to `address`, or to a cluster of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = _ray(reachable=address is not None)
    except ModuleNotFoundError:
        raise InputError(
            "setting engine",
            expected="Ray, for the engine 'ray'",
            found="no such package",
            remedy="pip install 'compalign-dagster[ray]', or use the engine 'devices'.",
        ) from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp") if address is None else None  # sockets need a short path
    try:
        if folder:
            cpus = max(workers or 0, len(os.sched_getaffinity(0)))
            ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            _connect(ray, str(address), quiet)
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _ray(*, reachable: bool) -> Any:
    """Ray; unless `reachable`, a cluster that this process starts listens on the loopback interface alone.

    Ray reads how from this variable when it is imported, and otherwise replaces 127.0.0.1 by what others can reach.
    """
    before = os.environ.get(_MAY_HAVE_NODES)
    if not reachable:
        os.environ.setdefault(_MAY_HAVE_NODES, "0")
    try:
        import ray
    finally:
        if before is None:
            os.environ.pop(_MAY_HAVE_NODES, None)
    return ray


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Ray cluster at {address}",
            expected="a running one with the same versions of Ray and Python",
            found=" ".join(str(error).split())[:300],
            remedy="Start it with `ray start --head`, or unset COMPALIGN_RAY_ADDRESS to start one here.",
        ) from error


def _fitting(
    ray: Any, config: "ScoringConfig", needs: Needs, workers: int | None
) -> tuple["ScoringConfig", Needs, int]:
    """The device that the actors use, what each needs, and how many there are."""
    has = ray.cluster_resources()
    gpus = 0 if config.device == "cpu" else max(1, needs.gpus)
    if config.device == "auto" and has.get("GPU", 0) < gpus:
        gpus = 0
    needs = replace(needs, gpus=gpus)
    config = replace(config, device="cuda" if gpus else "cpu")
    fits = [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= 1
        and node["Resources"].get("GPU", 0) >= gpus
        and node["Resources"].get("memory", 0) >= needs.ray_options()["memory"]
    ]
    if not fits:
        raise InputError(
            f"Ray cluster for the device {config.device!r}",
            expected=f"a machine with a CPU, {gpus} GPUs and {needs.memory_gib:g} GiB for an actor",
            found=_there(ray),
            remedy="Add one, or set COMPALIGN_DEVICE to auto or cpu.",
        )
    return config, needs, workers or (int(has["GPU"] // gpus) if gpus else len(fits))


def _there(ray: Any) -> str:
    has = ray.cluster_resources()
    memory = has.get("memory", 0) / (1 << 30)
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{nodes} machines, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs and {memory:.1f} GiB in all"
