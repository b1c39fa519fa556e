"""What the core needs of storage: the protocol, the facts of a listed object, the errors.

What does not belong here: anything that knows whether the bytes lie on a disk or in a bucket.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from compalign_dagster.errors import CompalignError, InputError


@dataclass(frozen=True, order=True)
class Listed:
    """One object found by `Store.list`."""

    key: str
    size: int  # bytes
    stamp: str  # changes when the object does: mtime in ns on a disk, ETag in a bucket


class Store(Protocol):
    """Immutable objects. Keys are relative, with forward slashes; a part that starts with "." is hidden.

    Every method raises a `StoreError`: `ObjectMissingError` where there is no such object,
    `AccessDeniedError`, `TransientStoreError` when retries did not help. Only the source of a `put_new` that cannot
    be read raises what the operating system says.
    """

    url: str

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        ...

    def stat(self, key: str) -> Listed:
        """Size and stamp of one object."""
        ...

    def read(self, key: str) -> bytes:
        """A whole object."""
        ...

    def read_range(self, key: str, offset: int, length: int, *, stamp: str | None = None) -> bytes:
        """At most `length` bytes from `offset`; fewer at the object's end, none behind it.

        With a `stamp`: `ObjectChangedError` if the object is another one by now.
        """
        ...

    def open(self, key: str, *, stamp: str | None = None) -> BinaryIO:
        """An object as a stream that is read forward; `stamp` as in `read_range`."""
        ...

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Listed]:
        """Objects whose key starts with `prefix` and is greater than `after`, in the order of the keys' UTF-8.

        Streams: memory does not follow the number of objects. Hidden ones are left out.
        """
        ...

    def folders(self, prefix: str = "") -> Iterator[str]:
        """The keys up to the next slash behind `prefix`, each ending in "/", once each and in key order.

        Hidden ones are left out. One that holds nothing but hidden objects, or nothing on a disk, is one too.
        """
        ...

    def put_new(self, key: str, source: bytes | Path) -> bool:
        """Publish an object whole, or return False because somebody else has taken the key.

        `InconclusiveWriteError` when it cannot be found out which; running again settles it.
        """
        ...

    def replace(self, key: str, source: bytes | Path, *, stamp: str) -> None:
        """Put other bytes in the place of the object with this stamp, at once and for all readers.

        Only a redaction calls this (`lineage/redaction.py`). `ObjectChangedError` when another object is there by now.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object, durably; nothing happens where there is none.

        Only what a person asked for calls this. An artifact exists when its manifest does, so the manifest goes
        before the files: a crash between them leaves garbage, not an artifact without its files.
        """
        ...

    def fetch(self, key: str) -> Path:
        """A local file with the object's bytes, for libraries that want a path. Read it, never write it."""
        ...


class StoreError(CompalignError):
    """An operation of a store that failed."""


class TransientStoreError(StoreError):
    """Throttling, a server error, a broken connection or a stale mount that outlived the retries."""


class AccessDeniedError(StoreError):
    """The store does not let these credentials do this, or there are none."""


class ObjectMissingError(StoreError, FileNotFoundError):
    """There is no such object."""


class ObjectChangedError(StoreError):
    """The object is not the one that was listed."""


class InconclusiveWriteError(StoreError):
    """Nobody knows whether a write landed. Running again settles it."""


def checked_parts(key: str) -> list[str]:
    """The parts of a key; one that is empty, absolute or would leave the store is refused."""
    parts = key.split("/")
    if not key or ".." in parts or "." in parts or "" in parts or "\\" in key or "\0" in key:
        raise InputError(
            f"store key {key!r}",
            expected="a relative path with forward slashes",
            found="a path that is empty, absolute or climbs",
            remedy="Rename the object.",
        )
    return parts


def hidden(key: str) -> bool:
    """Whether a part of the key starts with a dot: unfinished or private, not an object."""
    return key.startswith(".") or "/." in key


def missing(what: str) -> ObjectMissingError:
    """The error for an object that is not there; `what` names it."""
    return ObjectMissingError(
        what,
        expected="an object",
        found="none",
        remedy="It was removed, renamed or never landed: look at the store, then run again.",
    )


def changed(what: str) -> ObjectChangedError:
    """The error for an object that is another one than was listed; `what` names it."""
    return ObjectChangedError(
        what,
        expected="the object that was listed",
        found="another one under the same name",
        remedy="Let the sensor list it again: new bytes under an old name become a superseding batch.",
    )
