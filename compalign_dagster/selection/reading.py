"""Kept pairs of a version, read where they landed: no image is copied, no table of all pairs is in memory.

What belongs here: the order of an epoch, captions and images of a stretch of it, the proof that they are what
was kept. What does not: workers, ranks and torch (`training.py`); tables of kept pairs (`pairs.py`).

The order of an epoch is a function of (seed, epoch) alone, so a place in it is one number. Batches are
shuffled; in each batch shards are shuffled and laid end to end, in reading order each; then every window of
so many pairs is shuffled. Somebody who reads positions a to b loads only the batches that these lie in, one
at a time, of their pair indices only what a window needs, and of the images a few.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError
from compalign_dagster.selection.pairs import PAIR, PLACED, PairChangedError, changed, index_keys, proved, with_captions
from compalign_dagster.selection.version import Version
from compalign_dagster.store import ObjectMissingError, Store

OnChanged = Literal["error", "skip"]

_PLACE = ["shard", "image_offset", "image_length"]
_GIVEN = [*PAIR, "corpus", "reward", "caption"]
_THREADS = 8  # images under way at once: what a bucket's answer takes is hidden, and as many images are in memory

log = logging.getLogger(__name__)


class Read(NamedTuple):
    """What lies at a position of an epoch; `sample` is None for a pair that changed and is skipped."""

    position: int
    sample: dict[str, Any] | None


@dataclass(frozen=True)
class Order:
    """An order of all kept pairs: positions 0 to n - 1. Equal values give equal orders on every machine."""

    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    window: int = 8192  # pairs that are shuffled with each other

    def of_batches(self, batches: Sequence[str]) -> list[str]:
        """The batches of an epoch, in order."""
        return [batches[at] for at in self._permuted(len(batches), 0)]

    def of_rows(self, shards: np.ndarray, batch: int) -> np.ndarray:
        """The rows of batch number `batch` in order, [n] int64, from the shard number of each row in reading order."""
        rows = np.arange(len(shards))
        if not self.shuffle or not len(rows):
            return rows
        starts = np.flatnonzero(np.diff(shards, prepend=shards[0] - 1))
        runs = np.split(rows, starts[1:])
        rows = np.concatenate([runs[at] for at in self._permuted(len(runs), 1, batch)])
        windows = [rows[start : start + self.window] for start in range(0, len(rows), self.window)]
        return np.concatenate([part[self._permuted(len(part), 2, batch, at)] for at, part in enumerate(windows)])

    def _permuted(self, count: int, *what: int) -> np.ndarray:
        """A permutation that no release of numpy changes: the raw stream of a bit generator, sorted."""
        if not self.shuffle:
            return np.arange(count)
        stream = np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch, *what]))
        return np.argsort(stream.random_raw(count), kind="stable")


class Reader:
    """Stretches of an epoch as samples.

    A sample has `image` (the bytes that landed), `caption`, `pair_id, shard, key, caption_index, corpus` and
    `reward` (float). Each was proved: its `pair_id` is the digest of this image and this caption.

    Args:
        version: the version to read.
        landing: the store that its shards landed in.
        order: of the epoch.
        on_changed: what a pair does whose bytes are no longer there: `error` names it; `skip` counts it.
    """

    def __init__(self, version: Version, landing: Store, order: Order, on_changed: OnChanged = "error") -> None:
        self._version, self._landing, self._order, self._on_changed = version, landing, order, on_changed
        kept = dict(version.lists.group_by("batch").agg(pl.col("kept").sum()).iter_rows())
        self._numbers = {batch: at for at, batch in enumerate(sorted(kept))}
        self._batches = [(batch, kept[batch]) for batch in order.of_batches(sorted(kept))]
        self._indices = index_keys(version)
        self.total: int = sum(kept.values())

    def read(self, start: int, stop: int) -> Iterator[Read]:
        """What lies at positions `start` to `stop - 1`, in order.

        Raises:
            PairChangedError: naming the first pair that is not there any more, unless such are skipped.
            StoreError: when a store does not answer or refuses.
        """
        first = 0
        for batch, count in self._batches:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                for at, sample in enumerate(self._read_batch(batch, low, high), start=first + low):
                    yield Read(at, sample)
            first += count

    def _read_batch(self, batch: str, low: int, high: int) -> Iterator[dict[str, Any] | None]:
        kept = self._version.kept(batch, PLACED)
        rows = self._order.of_rows(kept["shard"].rle_id().to_numpy().astype(np.int64), self._numbers[batch])
        window = self._order.window
        with MemberReader() as members, ThreadPoolExecutor(_THREADS) as pool:
            for begin in range(low - low % window, high, window):
                wanted = rows[max(begin, low) : min(begin + window, high)]
                yield from self._samples(self._captioned(kept[wanted]), members, pool)

    def _captioned(self, rows: pl.DataFrame) -> pl.DataFrame:
        return with_captions(rows, self._version.store, self._indices)

    def _samples(
        self, rows: pl.DataFrame, members: MemberReader, pool: ThreadPoolExecutor
    ) -> Iterator[dict[str, Any] | None]:
        """Samples in the order of rows. Images of plain tars are read ahead, by range; a gzip is unpacked forwards."""
        waiting: deque[tuple[dict[str, Any], Future[bytes] | None]] = deque()

        def ahead(row: dict[str, Any]) -> Future[bytes] | None:
            if waiting and all(waiting[-1][0][name] == row[name] for name in _PLACE):
                return waiting[-1][1]  # another caption of the same image
            return None if self._shard(row).compressed else pool.submit(self._image, row, members)

        def finish() -> dict[str, Any] | None:
            row, image = waiting.popleft()
            return self._finished(row, image.result if image else partial(self._image, row, members))

        try:
            for row in rows.iter_rows(named=True):
                waiting.append((row, ahead(row)))
                if len(waiting) > _THREADS:
                    yield finish()
            while waiting:
                yield finish()
        finally:
            for _, image in waiting:
                if image:
                    image.cancel()

    def _shard(self, row: dict[str, Any]) -> Shard:
        return Shard(row["shard"], self._landing, row["shard"])

    def _image(self, row: dict[str, Any], members: MemberReader) -> bytes:
        return members.read(self._shard(row), row["image_offset"], row["image_length"])

    def _finished(self, row: dict[str, Any], image: Callable[[], bytes]) -> dict[str, Any] | None:
        try:
            return {"image": proved(row, image()), **{name: row[name] for name in _GIVEN}}
        except (InputError, ObjectMissingError) as error:
            problem = error if isinstance(error, PairChangedError) else changed(row, str(error))
            if self._on_changed == "error":
                raise problem from error
            log.warning("%s", problem)
            return None
