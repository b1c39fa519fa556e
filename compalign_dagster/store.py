"""Where artifacts live: immutable objects under slash-separated keys, on a disk or in a bucket.

Nothing is ever overwritten: `put_new` publishes a whole object or reports that the key is taken.
What belongs here: bytes and keys. What does not: manifests (`artifacts.py`) and meaning.
"""

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from compalign_dagster.errors import InputError


@dataclass(frozen=True, order=True)
class Listed:
    """One object found by `Store.list`."""

    key: str
    size: int  # bytes
    stamp: str  # changes when the object does: mtime in ns on a disk, ETag in a bucket


class Store(Protocol):
    """What the core needs of storage. Keys are relative, with forward slashes."""

    url: str

    def exists(self, key: str) -> bool: ...
    def stat(self, key: str) -> Listed: ...
    def read(self, key: str) -> bytes: ...
    def read_range(self, key: str, offset: int, length: int) -> bytes: ...
    def open(self, key: str) -> BinaryIO: ...
    def list(self, prefix: str = "") -> Iterator[Listed]: ...
    def put_new(self, key: str, source: bytes | Path) -> bool: ...
    def fetch(self, key: str) -> Path: ...


class LocalStore:
    """A folder. A new object is written beside its place, synced, then linked into it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def path(self, key: str) -> Path:
        """The file of a key; a key that would leave the folder is refused."""
        parts = key.split("/")
        if not key or key.startswith("/") or ".." in parts or "" in parts or "\\" in key or "\0" in key:
            raise InputError(
                f"store key {key!r}",
                expected="a relative path with forward slashes",
                found="a path that is empty, absolute or climbs",
                remedy="Rename the object.",
            )
        return self.root.joinpath(*parts)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def stat(self, key: str) -> Listed:
        facts = self.path(key).stat()
        return Listed(key, facts.st_size, str(facts.st_mtime_ns))

    def read(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        with self.path(key).open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def open(self, key: str) -> BinaryIO:
        return self.path(key).open("rb")

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Objects whose key starts with `prefix`, in key order; hidden files are not objects."""
        top = self.root / prefix.rpartition("/")[0]
        found = []
        for folder, folders, names in os.walk(top, onerror=_unless_missing):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if name.startswith(".") or not key.startswith(prefix) or not path.is_file():
                    continue
                facts = path.stat()
                found.append(Listed(key, facts.st_size, str(facts.st_mtime_ns)))
        yield from sorted(found)

    def put_new(self, key: str, source: bytes | Path) -> bool:
        """Publish an object whole, or return False because the key is taken."""
        target = self.path(key)
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.part"
        try:
            with temporary.open("wb") as out:
                if isinstance(source, bytes):
                    out.write(source)
                else:
                    with source.open("rb") as stream:
                        shutil.copyfileobj(stream, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(temporary, target)  # atomic, and refuses to replace
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_folder(target.parent)
        return True

    def fetch(self, key: str) -> Path:
        """A local file with the object's bytes, for libraries that want a path. Read it, never write it."""
        return self.path(key)

    def _sync_folder(self, folder: Path) -> None:
        """Make new names durable, up to the root: a link is lost with its unsynced folder."""
        while True:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            if folder == self.root or self.root not in folder.parents:
                return
            folder = folder.parent


def _unless_missing(error: OSError) -> None:
    """A folder that cannot be read must not look empty; one that does not exist is."""
    if not isinstance(error, FileNotFoundError):
        raise error


class BucketStore:
    """A prefix of an object store, through obstore. Publishing relies on conditional puts."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.url = url.rstrip("/")
        self._store = from_url(self.url)
        self._cache = Path(tempfile.gettempdir()) / "compalign-fetch" / uuid.uuid5(uuid.NAMESPACE_URL, self.url).hex

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True

    def stat(self, key: str) -> Listed:
        import obstore

        return _listed(obstore.head(self._store, key))

    def read(self, key: str) -> bytes:
        import obstore

        return bytes(obstore.get(self._store, key).bytes())

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        import obstore

        return bytes(obstore.get_range(self._store, key, start=offset, length=length)) if length else b""

    def open(self, key: str) -> BinaryIO:
        import obstore

        return io.BufferedReader(_Reader(obstore.open_reader(self._store, key)), 1 << 20)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        import obstore

        folder = prefix.rpartition("/")[0]
        found = (entry for page in obstore.list(self._store, prefix=folder or None) for entry in page)
        yield from sorted(item for item in map(_listed, found) if item.key.startswith(prefix))

    def put_new(self, key: str, source: bytes | Path) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, key, source, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def fetch(self, key: str) -> Path:
        listed = self.stat(key)
        path = self._cache / uuid.uuid5(uuid.NAMESPACE_URL, listed.stamp).hex / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}.part")
            temporary.write_bytes(self.read(key))
            temporary.replace(path)
        return path


class _Reader(io.RawIOBase):
    """obstore's reader as a Python file: by itself it knows no `with`."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


def _listed(entry: Any) -> Listed:
    return Listed(entry["path"], entry["size"], entry["e_tag"] or str(entry["last_modified"]))


def open_store(url: str) -> Store:
    """The store at a folder path or an `s3://bucket/prefix` URL."""
    if url.startswith("s3://"):
        return BucketStore(url)
    if "://" in url:
        raise InputError(
            f"store {url!r}",
            expected="a folder path or an s3:// URL",
            found="another scheme",
            remedy="Use a path without a scheme for a local folder.",
        )
    return LocalStore(Path(url))
