"""A store in a folder of this machine."""

import errno
import fcntl
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from compalign_dagster.store.base import (
    Listed,
    ObjectMissingError,
    StoreError,
    changed,
    checked_parts,
    hidden,
    missing,
)
from compalign_dagster.store.disk import NO_OBJECT, explain_delete, explain_read, explain_write

_LOCK = ".replacing"  # hidden, so not an object; held between the look at an object and its replacement
_LOG = logging.getLogger(__name__)


class LocalStore:
    """A folder. A new object is written beside its place, synced, linked into it, and its name synced."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)
        self._has_a_name = False  # durably, in the folders above

    def path(self, key: str) -> Path:
        """The file of a key; a key that would leave the folder is refused."""
        return self.root.joinpath(*checked_parts(key))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissingError:
            return False
        return True

    def stat(self, key: str) -> Listed:
        path = self.path(key)
        with _reading(path):
            facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise missing(str(path))
        return _listed(key, facts)

    def read(self, key: str) -> bytes:
        """A whole object, durable before anybody acts on it: facts and manifests are read this way."""
        path = self.path(key)
        folder = path.parent
        with self.open(key) as stream, _reading(path):
            unfinished = os.fstat(stream.fileno()).st_nlink > 1  # its writer is not done yet, or was killed
            if unfinished and os.access(folder, os.W_OK):  # who cannot write here builds nothing on it
                self._sync_names(folder)
            return stream.read()

    def read_range(self, key: str, offset: int, length: int, *, stamp: str | None = None) -> bytes:
        with self.open(key, stamp=stamp) as stream, _reading(self.path(key)):
            stream.seek(offset)
            return stream.read(length)

    def open(self, key: str, *, stamp: str | None = None) -> BinaryIO:
        path = self.path(key)
        with _reading(path):
            stream = path.open("rb")
        if stamp is not None and _listed(key, os.fstat(stream.fileno())).stamp != stamp:
            stream.close()
            raise changed(str(path))
        return stream

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Listed]:
        """Objects in key order; holds the names of the folders on the way, never those of the store."""
        yield from self._walk(prefix.rpartition("/")[0], prefix, after)

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[Listed]:
        for key, entry in _entries(self.root / folder, folder):
            if key.endswith("/"):
                behind = key > after or after.startswith(key)
                if behind and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._walk(key[:-1], prefix, after)
            elif key.startswith(prefix) and key > after and (facts := _facts(entry)):
                yield _listed(key, facts)

    def folders(self, prefix: str = "") -> Iterator[str]:
        top = prefix.rpartition("/")[0]
        for key, _ in _entries(self.root / top, top):
            if key.endswith("/") and key.startswith(prefix):
                yield key

    def put_new(self, key: str, source: bytes | Path) -> bool:
        """Publish an object whole, or return False because the key is taken. Either way what is there is durable.

        Until the object's name is durable it has a second, hidden one, by which `read` knows.
        """
        target = self.path(key)
        try:
            return self._put_new(key, target, source)
        except OSError as error:
            if isinstance(error, StoreError) or str(error.filename) == str(source):  # it is the source that fails
                raise
            raise explain_write(error, str(target)) from error

    def _put_new(self, key: str, target: Path, source: bytes | Path) -> bool:
        if self.exists(key):
            self._sync_names(target.parent)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.part"
        try:
            _write(temporary, source)
            new = _link(temporary, target)
            if not new and not self.exists(key):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sync_names(target.parent)
        temporary.unlink(missing_ok=True)
        return new

    def replace(self, key: str, source: bytes | Path, *, stamp: str) -> None:
        """The old bytes lose all of their names; who reads them at the moment reads them to the end."""
        target = self.path(key)
        temporary = target.parent / f".{uuid.uuid4().hex}.part"
        try:
            _write(temporary, source)
            with _locked(self.root / _LOCK):
                if self.stat(key).stamp != stamp:
                    raise changed(str(target))
                before = target.stat().st_mtime_ns
                if temporary.stat().st_mtime_ns <= before:  # two writes within a tick of the file system's clock
                    os.utime(temporary, ns=(before + 1, before + 1))
                others = _hidden_names(target)
                temporary.replace(target)
            for name in others:
                name.unlink(missing_ok=True)
            self._sync_names(target.parent)
        except OSError as error:
            if isinstance(error, StoreError) or str(error.filename) == str(source):
                raise
            raise explain_write(error, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Remove an object under all of its names. Its folder stays: somebody may be about to write into it."""
        path = self.path(key)
        try:
            _unlink(path)
        except OSError as error:
            if error.errno not in NO_OBJECT:
                raise explain_delete(error, str(path)) from error

    def fetch(self, key: str) -> Path:
        """The object's own file."""
        self.stat(key)
        return self.path(key)

    def _sync_names(self, folder: Path) -> None:
        """Make every name on the way to `folder` durable: an object is lost with any of them."""
        for level in (folder, *folder.parents):
            _sync(level)
            if level == self.root:
                break
        if self._has_a_name:
            return
        device = self.root.stat().st_dev
        for level in self.root.parents:  # whoever made the folders above the store may have been killed
            if level.stat().st_dev != device:
                break  # a mount point was there before
            if os.access(level, os.R_OK):  # one that may not be opened cannot be synced; we made nothing in it
                _sync(level)
        self._has_a_name = True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other process or thread is inside at the same time; the lock goes with the process that holds it."""
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_read(error, str(path)) from error


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What is known of a file; None for what is none: a pipe, a link to nothing or in a circle, one just removed."""
    try:
        facts = entry.stat()
    except OSError as error:
        if error.errno in NO_OBJECT:
            return None
        raise explain_read(error, entry.path) from error
    if stat.S_ISDIR(facts.st_mode):
        _tell_of_link(entry.path)
    return facts if stat.S_ISREG(facts.st_mode) else None


@lru_cache(maxsize=1000)
def _tell_of_link(path: str) -> None:
    """Once a process: what lies behind a link to a folder may be the folder itself, so none is followed."""
    _LOG.warning("%r is a link to a folder and is not followed: mount the folder there, or move it.", path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, source: bytes | Path) -> None:
    """A new file with the source's bytes, durable but for its name."""
    with path.open("xb") as out:
        if isinstance(source, bytes):
            out.write(source)
        else:
            with source.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())


def _link(existing: Path, new: Path) -> bool:
    """Give a file a second name, at once and for all readers; False when that name is taken."""
    try:
        os.link(existing, new)
    except FileExistsError:
        return False
    return True


def _unlink(path: Path) -> None:
    """Remove a file durably, and the hidden name that a killed writer left it, with which its bytes would stay."""
    if stat.S_ISDIR(path.lstat().st_mode):
        return
    for name in [*_hidden_names(path), path]:
        name.unlink(missing_ok=True)
    _sync(path.parent)


def _hidden_names(path: Path) -> list[Path]:
    """Hidden names that the file has beside its own in its folder."""
    number = path.lstat().st_ino
    with os.scandir(path.parent) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(".") and entry.inode() == number]


def _listed(key: str, facts: os.stat_result) -> Listed:
    return Listed(key, facts.st_size, str(facts.st_mtime_ns))


def _entries(path: Path, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What lies in a folder, by key; a folder's key ends in "/", which sorts it among the files as its objects do.

    A folder that cannot be read must not look empty; one that does not exist is.
    """
    start = f"{folder}/" if folder else ""
    if hidden(folder) or folder.startswith("/"):
        return []
    try:
        with _reading(path), os.scandir(path) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except ObjectMissingError:
        return []
    keyed = [(f"{start}{e.name}/" if e.is_dir(follow_symlinks=False) else start + e.name, e) for e in entries]
    return sorted(keyed, key=lambda item: item[0])
