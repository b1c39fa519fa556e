"""Kept pairs for training: an iterable torch dataset over workers and ranks that can stop and go on.

What belongs here: who reads which stretch of an epoch, and where everybody is. What does not: reading
(`reading.py`). Imports torch: only training code imports this module.

Of n pairs, c readers (workers of all ranks) get n/c each: reader r those at positions floor(nr/c) to
floor(n(r+1)/c) - 1 of the epoch's order. Each pair is read exactly once an epoch, whatever c is.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from compalign_dagster import artifacts
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.selection import versions
from compalign_dagster.selection.reading import OnChanged, Order, Reader
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store, open_store

Sample = dict[str, Any]
_STATE_VERSION = 1


class _Mark(NamedTuple):
    """How far a worker is: the position it has read last, and how many it has skipped so far."""

    worker: int
    workers: int
    position: int
    skipped: int


class KeptPairs(IterableDataset):
    """One epoch of a version's kept pairs, as `reading.Reader` gives them; picklable.

    Stops and goes on by itself in one process. With worker processes use `Loader`, which hears how far each is.

    Args:
        version: the version to read.
        landing: the store that its shards landed in.
        seed: of the shuffling.
        shuffle: False gives reading order, which compressed shards need to be read fast.
        window: pairs that are shuffled with each other.
        rank, world: this process among all that train; torch.distributed's when it is initialized, else 0 of 1.
        on_changed: `error` or `skip` for pairs whose bytes are no longer there; `skipped` counts them.
        transform: makes of a sample what the iteration gives.
    """

    def __init__(
        self,
        version: Version,
        landing: Store,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 8192,
        rank: int | None = None,
        world: int | None = None,
        on_changed: OnChanged = "error",
        transform: Callable[[Sample], Any] | None = None,
    ) -> None:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if together else 0
        self._world = world if world is not None else torch.distributed.get_world_size() if together else 1
        if not 0 <= self._rank < self._world or window < 1:
            raise ValueError(f"rank {self._rank} of {self._world} with a window of {window}")
        self._seed, self._shuffle, self._window = seed, shuffle, window
        self._on_changed, self._transform = on_changed, transform
        self._places = (version.store.url, landing.url, version.artifact.manifest_key)
        self._opened: tuple[int, Version, Store] | None = (os.getpid(), version, landing)
        self._dataset = version.artifact.data_version
        self._next: dict[int, int] = {}  # of each worker that has begun: the position that it reads next
        self._skipped: dict[int, int] = {}
        self.pairs = Reader(version, landing, self._order(0)).total
        self._reset(0)

    @classmethod
    def open(cls, store: str, landing: str, version: str = "current", **options: Any) -> Self:
        """The pairs of a version by its name, from folders or `s3://` URLs; see `versions.resolve`."""
        return cls(versions.resolve(open_store(store), version), open_store(landing), **options)

    @property
    def epoch(self) -> int:
        """The epoch that an iteration reads, from 0."""
        return self._epoch

    @property
    def skipped(self) -> int:
        """Pairs of this rank and epoch that were skipped so far, for their bytes are no longer there."""
        return sum(self._skipped.values())

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch, with an order of its own; the present one goes on where it is."""
        if epoch != self._epoch:
            self._reset(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is, as JSON values."""
        return {
            **self._identity(),
            "epoch": self._epoch,
            "workers": self._workers,
            "turn": self._turn,
            "next": {str(worker): place for worker, place in self._next.items()},
            "skipped": {str(worker): count for worker, count in self._skipped.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the next iteration gives what followed.

        Raises:
            InputError: for the state of another dataset, order or rank.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise _does_not_fit(name, value, state.get(name))
        self._reset(state["epoch"])
        self._workers, self._turn, self._resumed = state["workers"], state["turn"], True
        self._next = {int(worker): place for worker, place in state["next"].items()}
        self._skipped = {int(worker): count for worker, count in state["skipped"].items()}

    def __iter__(self) -> Iterator[Any]:
        for mark, sample in self.marked():
            self.received(mark)
            if sample is not None:
                yield sample

    def marked(self) -> Iterator[tuple[_Mark, Any]]:
        """What this worker reads: where it is, and the sample or None where it was skipped."""
        worker, workers, start, stop = self._stretch()
        version, landing = self._open()
        reader = Reader(version, landing, self._order(self._epoch), self._on_changed)
        skipped = self._skipped.get(worker, 0)
        for position, sample in reader.read(start, stop):
            if sample is None:
                skipped += 1
            elif self._transform is not None:
                sample = self._transform(sample)
            yield _Mark(worker, workers, position, skipped), sample

    def received(self, mark: _Mark) -> None:
        """Note that everything of a worker up to there was handed out."""
        self._workers, self._turn = mark.workers, (mark.worker + 1) % mark.workers
        self._next[mark.worker], self._skipped[mark.worker] = mark.position + 1, mark.skipped

    def begin(self) -> None:
        """Forget where an earlier iteration of this epoch was, unless the next one is to go on there."""
        if not self._resumed:
            self._reset(self._epoch)
        self._resumed = False

    def _stretch(self) -> tuple[int, int, int, int]:
        """This worker's number, how many there are, and its positions: first and one past the last."""
        info = get_worker_info()
        workers = info.num_workers if info else 1
        if self._resumed and self._workers != workers:
            raise _does_not_fit("workers", workers, self._workers)
        self.begin()
        worker = (info.id + self._turn) % workers if info else 0
        reader, readers = self._rank * workers + worker, self._world * workers
        start, stop = (self.pairs * at // readers for at in (reader, reader + 1))
        return worker, workers, self._next.get(worker, start), stop

    def _reset(self, epoch: int) -> None:
        self._epoch = epoch
        self._workers, self._turn, self._resumed = 1, 0, False
        self._next, self._skipped = {}, {}

    def _order(self, epoch: int) -> Order:
        return Order(self._seed, epoch, self._shuffle, self._window)

    def _identity(self) -> dict[str, Any]:
        return {
            "state_version": _STATE_VERSION,
            "dataset": self._dataset,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "window": self._window,
            "rank": self._rank,
            "world": self._world,
        }

    def _open(self) -> tuple[Version, Store]:
        """The version and where shards landed, opened anew in another process."""
        if self._opened is not None and self._opened[0] != os.getpid():
            raise InputError(
                "worker process of a DataLoader",
                expected="one that was spawned, for clients of stores and threads do not survive a fork",
                found="one that was forked",
                remedy="Use Loader, or give DataLoader multiprocessing_context='spawn'.",
            )
        if self._opened is None:
            store, landing, key = self._places
            artifact = artifacts.load(open_store(store), key)
            if artifact is None:
                raise _does_not_fit("dataset", self._dataset, None)
            self._opened = (os.getpid(), Version.open(artifact), open_store(landing))
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class Loader:
    """Batches of kept pairs from worker processes, which can stop and go on at exactly the next pair.

    What `state_dict` says counts the batches that were handed out, not those that workers read ahead. Go on
    with as many workers and ranks and the same batch size: the batches are those of a run without a stop.

    Args:
        dataset: of this rank.
        batch_size: samples of a batch; the last ones of each worker may have fewer, or none with `drop_last`.
        workers: processes that read, spawned anew for each epoch; 0 reads in this one. What they get (`transform`,
            `collate`) is pickled, and a script that is run needs `if __name__ == "__main__"`.
        collate: makes a batch of a list of samples; torch's default makes a dictionary of columns.
        options: of torch's DataLoader, such as `prefetch_factor`, `pin_memory`, `timeout`.
    """

    def __init__(
        self,
        dataset: KeptPairs,
        batch_size: int,
        *,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = default_collate,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        if options.get("persistent_workers"):
            raise ValueError("workers begin anew with each epoch: they would not hear of it otherwise")
        self._dataset = dataset
        if workers:
            options = {"multiprocessing_context": "spawn", **options}
        self._loader: DataLoader = DataLoader(
            _Marked(dataset),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_Collate(collate),
            drop_last=drop_last,
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        """See `KeptPairs.set_epoch`."""
        self._dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `KeptPairs.state_dict`."""
        return self._dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `KeptPairs.load_state_dict`."""
        self._dataset.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        if self._loader.num_workers:
            self._dataset.begin()  # the workers have their copies
        for mark, batch in batches:
            if isinstance(mark, CompalignError):
                raise mark
            self._dataset.received(mark)
            yield batch


class _Marked(IterableDataset):
    """Samples with where they are; an error is the last item, for torch would not carry it over whole."""

    def __init__(self, dataset: KeptPairs) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[tuple[_Mark | CompalignError, Any]]:
        held: tuple[_Mark, Any] | None = None  # its mark tells of the skipped ones behind it, too
        try:
            for mark, sample in self._dataset.marked():
                if sample is not None:
                    if held is not None:
                        yield held
                    held = (mark, sample)
                elif held is not None:
                    held = (mark, held[1])
        except CompalignError as error:
            yield error, None
        else:
            if held is not None:
                yield held


class _Collate:
    """A batch with where its last sample is, or the error that ended it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, marked: list[tuple[_Mark | CompalignError, Any]]) -> tuple[_Mark | CompalignError, Any]:
        last = marked[-1][0]
        return last, None if isinstance(last, CompalignError) else self._collate([sample for _, sample in marked])


def _does_not_fit(name: str, expected: Any, found: Any) -> InputError:
    return InputError(
        f"{name} of a reader's state",
        expected=str(expected),
        found=str(found),
        remedy="Go on with the same version, order, ranks and workers, or begin an epoch anew.",
    )
