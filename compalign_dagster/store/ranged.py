"""An object as a file that can be sought in, for libraries that read a few ranges of a large one."""

import io
from typing import BinaryIO

from compalign_dagster.store.base import Store
from compalign_dagster.store.local import LocalStore

_BUFFER = 1 << 18


def seekable(store: Store, key: str) -> BinaryIO:
    """The object `key`, open for reading at any place; of a bucket only the ranges that are read are fetched.

    Raises `ObjectMissingError`, and `ObjectChangedError` when a bucket's object is replaced meanwhile.
    """
    if isinstance(store, LocalStore):
        return store.fetch(key).open("rb")
    return io.BufferedReader(_Ranges(store, key), _BUFFER)


class _Ranges(io.RawIOBase):
    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key, self._at = store, key, 0
        listed = store.stat(key)
        self._size, self._stamp = listed.size, listed.stamp

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._store.read_range(self._key, self._at, length, stamp=self._stamp)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
