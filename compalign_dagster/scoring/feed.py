"""Images ahead of the model: one thread reads shards in order, a few decode, and bounded queues hold both back.

What belongs here: the threads, their bounds, how they end. What does not: where bytes lie (`reading.py`), what
the model does with an image.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from torch import Tensor

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.scoring.meter import Meter
from compalign_dagster.scoring.reading import Job, images

_WAITING_BYTES = 256 << 20  # of undecoded images; one larger than all of it goes through alone


@dataclass(frozen=True)
class Picture:
    """An image of the current shard and the rows of its pairs; `prepared` may raise `ImageRejected`."""

    rows: list[int]
    prepared: "Future[Tensor]"


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class _Line:
    """First in, first out from one thread to another, of bounded count and bytes; closing it frees who waits."""

    def __init__(self, items: int, size: int) -> None:
        self._most_items, self._most_size = items, size
        self._waiting: deque[tuple[Any, int]] = deque()
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()

    def wait_for_room(self, size: int) -> bool:
        """Whether there is room, once there is; False when the line was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._waiting or self._fits(size))
            return not self._closed

    def put(self, item: Any, size: int = 0) -> None:
        with self._changed:
            self._waiting.append((item, size))
            self._size += size
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting))
            item, size = self._waiting.popleft()
            self._size -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return len(self._waiting) < self._most_items and self._size + size <= self._most_size


class Feed:
    """The images of some shards, prepared ahead. A context: leaving it ends its threads and lets go of files.

    `jobs` is iterated in the reading thread, a little ahead of what was asked for. `ahead` images at most are read
    and not yet taken; `prepare` runs in `decoders` threads. What either of them raises is raised to who asks.
    """

    def __init__(
        self,
        jobs: Iterable[tuple[Shard, pa.Table]],
        prepare: Callable[[bytes], Tensor],
        *,
        decoders: int,
        ahead: int,
    ) -> None:
        self._jobs, self._prepare = jobs, prepare
        self._line = _Line(ahead, _WAITING_BYTES)
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        self._reader.join()
        self._pool.shutdown(cancel_futures=True)

    def next_job(self, meter: Meter) -> Job | None:
        """The next shard, once all pictures of the one before were taken; None after the last. Waiting is `read`."""
        with meter.during("read"):
            return self._next()

    def pictures(self, meter: Meter) -> Iterator[Picture]:
        """The current shard's images, in the order of its pairs; waiting counts as `read` or as `decode`."""
        while True:
            with meter.during("read"):
                item = self._next()
            if item is None:
                return
            with meter.during("decode"):
                item.prepared.exception()  # waits; who takes the picture raises it
            yield item

    def _next(self) -> Any:
        item = self._line.get()
        if isinstance(item, _Failed):
            raise item.error
        return item

    def _read(self) -> None:
        try:
            if self._read_all():
                self._line.put(None)
        except BaseException as error:  # of a store, of a damaged index: whoever waits must hear of it
            self._line.put(_Failed(error))
        finally:
            if hasattr(self._jobs, "close"):
                self._jobs.close()

    def _read_all(self) -> bool:
        """Whether all was read; False when nobody wants the rest."""
        with MemberReader() as members:
            for shard, pairs in self._jobs:
                if not self._read_shard(members, Job.of(shard, pairs)):
                    return False
        return True

    def _read_shard(self, members: MemberReader, job: Job) -> bool:
        if not self._line.wait_for_room(0):
            return False
        self._line.put(job)
        with closing(images(members, job)) as found:
            for rows, data in zip(job.rows, found, strict=True):
                if not self._line.wait_for_room(len(data)):
                    return False
                self._line.put(Picture(rows, self._pool.submit(self._prepare, data)), len(data))
        self._line.put(None)
        return True
