"""Frozen features, computed once: kept by a digest of what they were computed from.

What belongs here: keeping vectors, in memory and, where a folder is named, in files that later
processes read. What does not: computing them. A feature must depend on its key alone (not on its
neighbours in a batch), or what was scored before would show in the scores.
"""

import logging
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

LIMIT_BYTES = 512 << 20
KEY_BYTES = 32

log = logging.getLogger(__name__)


class FeatureMemory:
    """Vectors float32 [width] by 32-byte keys, at most `limit_bytes` of them; the oldest go first.

    With a folder, new vectors are appended to a file of this process's own, as records of key, CRC-32
    and vector, until the files of this name hold about `limit_bytes`; a record cut short by a crash or with a
    wrong checksum is read as absent.
    """

    def __init__(self, name: str, width: int, *, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.name, self.width, self.folder = name, width, folder
        self.limit = max(1, limit_bytes // (4 * width))
        self.computed = 0  # vectors that were not found
        self._record = np.dtype([("key", "u1", KEY_BYTES), ("crc", "<u4"), ("vector", "<f4", width)])
        self._file = folder / f"{name}-{uuid.uuid4().hex}.features" if folder else None
        self._kept: dict[bytes, np.ndarray] = {}
        self._room = self.limit  # records that the folder may still get
        if folder is not None and folder.is_dir():
            for path in sorted(folder.glob(f"{name}-*.features")):
                try:
                    self._room -= path.stat().st_size // self._record.itemsize
                    self._load(path)
                except OSError as error:
                    log.warning("features in %s are computed again: %s", path, error.strerror)

    def lookup(self, keys: Sequence[bytes], compute: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """Vectors [N, width] in the order of `keys`.

        `compute(places)` gives the vectors of the places that are not kept, each key asked for once.
        """
        missing: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self._kept:
                missing.setdefault(key, place)
        fresh: dict[bytes, np.ndarray] = {}
        if missing:
            vectors = np.asarray(compute(list(missing.values())), dtype=np.float32)
            fresh = dict(zip(missing, vectors, strict=True))
            self.computed += len(fresh)
        found = [fresh[key] if key in fresh else self._kept[key] for key in keys]
        self._keep(fresh)
        return np.stack(found) if found else np.empty((0, self.width), dtype=np.float32)

    def _keep(self, fresh: dict[bytes, np.ndarray]) -> None:
        self._kept.update(fresh)
        while len(self._kept) > self.limit:
            del self._kept[next(iter(self._kept))]
        if fresh and self._file and len(fresh) <= self._room:
            self._append(self._file, fresh)

    def _append(self, path: Path, fresh: dict[bytes, np.ndarray]) -> None:
        records = np.zeros(len(fresh), dtype=self._record)
        for record, (key, vector) in zip(records, fresh.items(), strict=True):
            record["key"] = np.frombuffer(key, dtype=np.uint8)
            record["crc"] = zlib.crc32(key + vector.tobytes())
            record["vector"] = vector
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as out:
                out.write(records.tobytes())
        except OSError as error:  # the vectors are there; only another process would have to compute them again
            log.warning("features are no longer kept in %s: %s", path.parent, error.strerror)
            self._file = None
        self._room -= len(fresh)

    def _load(self, path: Path) -> None:
        size = self._record.itemsize
        with path.open("rb") as stream:
            data = stream.read((self.limit - len(self._kept)) * size)
        for record in np.frombuffer(data[: len(data) // size * size], dtype=self._record):
            key, vector = record["key"].tobytes(), record["vector"]
            if zlib.crc32(key + vector.tobytes()) == record["crc"]:
                self._kept[key] = vector
