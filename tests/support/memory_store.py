"""A store in memory that behaves as a bucket does: stamps are digests, listings stream in key order."""

import hashlib
import io
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from compalign_dagster.store import Listed, ObjectMissingError


class MemoryStore:
    """Objects in a dictionary. `asked` counts what was asked of it; `refuse` is raised by everything."""

    def __init__(self, url: str = "memory://bucket") -> None:
        self.url = url
        self.asked: Counter[str] = Counter()
        self.refuse: Exception | None = None
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []

    def put(self, key: str, data: bytes = b"x") -> None:
        """Put or overwrite, as somebody who uploads does."""
        if key not in self._objects:
            insort(self._keys, key)
        self._objects[key] = data

    def put_many(self, keys: list[str]) -> None:
        self._objects.update(dict.fromkeys(keys, b"x"))
        self._keys = sorted(self._objects)

    def replace(self, key: str, source: bytes | Path, *, stamp: str) -> None:
        self._ask("replace")
        assert self.stat(key).stamp == stamp
        self.put(key, source if isinstance(source, bytes) else source.read_bytes())

    def delete(self, key: str) -> None:
        self._ask("delete")
        if key in self._objects:
            del self._objects[key]
            self._keys.remove(key)

    def _ask(self, what: str) -> None:
        self.asked[what] += 1
        if self.refuse:
            raise self.refuse

    def _get(self, key: str) -> bytes:
        if key not in self._objects:
            raise ObjectMissingError(f"{self.url}/{key}", expected="an object", found="none", remedy="Look again.")
        return self._objects[key]

    def exists(self, key: str) -> bool:
        self._ask("exists")
        return key in self._objects

    def stat(self, key: str) -> Listed:
        self._ask("stat")
        data = self._get(key)
        return Listed(key, len(data), hashlib.md5(data).hexdigest())

    def read(self, key: str) -> bytes:
        self._ask("read")
        return self._get(key)

    def read_range(self, key: str, offset: int, length: int, *, stamp: str | None = None) -> bytes:
        return self.read(key)[offset : offset + length]

    def open(self, key: str, *, stamp: str | None = None) -> BinaryIO:
        return io.BytesIO(self.read(key))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Listed]:
        self._ask("list")
        at = max(bisect_right(self._keys, after), bisect_left(self._keys, prefix))
        for key in self._keys[at:]:
            if key.startswith(prefix):
                self.asked["listed"] += 1
                yield Listed(key, len(self._objects[key]), hashlib.md5(self._objects[key]).hexdigest())
            elif key > prefix:
                return

    def folders(self, prefix: str = "") -> Iterator[str]:
        self._ask("folders")
        below = (key[len(prefix) :].partition("/") for key in self._keys if key.startswith(prefix))
        yield from sorted({f"{prefix}{name}/" for name, slash, _ in below if slash and not name.startswith(".")})

    def put_new(self, key: str, source: bytes | Path) -> bool:
        self._ask("put_new")
        if key in self._objects:
            return False
        self.put(key, source if isinstance(source, bytes) else source.read_bytes())
        return True

    def fetch(self, key: str) -> Path:
        raise io.UnsupportedOperation(f"no path for {key}")
