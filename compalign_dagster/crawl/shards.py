"""Shards: their names, where their bytes lie, how patterns find them, and how members are read by place.

What does not belong here: what is inside a shard (`tar.py`, `index.py`).
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from compalign_dagster.crawl.streams import Inflated
from compalign_dagster.crawl.tar import Tape
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.store import LocalStore, Store, open_store

_COMPRESSED = (".tar.gz", ".tgz")
SUFFIXES = (".tar", *_COMPRESSED)
_ANY_LENGTH = 1 << 62
_GLOB = re.compile(r"[*?\[]")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One tar of samples: `key` in `store`, called `name` relative to its landing root.

    With a `stamp`, reading another object under the same key is an error.
    """

    name: str
    store: Store
    key: str
    stamp: str | None = None

    @property
    def corpus(self) -> str:
        """The first folder of the name, or "crawl" when it has none."""
        return corpus_of(self.name)

    @property
    def compressed(self) -> bool:
        """Whether it is a gzip of a tar: the name says so, the bytes must agree."""
        return self.key.endswith(_COMPRESSED)


def is_shard(name: str) -> bool:
    """Tars and gzipped tars, outside hidden folders and not hidden themselves."""
    return name.endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))


def corpus_of(name: str) -> str:
    """The first folder of a shard's name, or "crawl" when it has none."""
    folder, slash, _ = name.partition("/")
    return folder if slash else "crawl"


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """The shards that the patterns name, sorted by name.

    A pattern is a glob (`**` for any depth), a folder (every shard below it), a file, or an `s3://`
    prefix or glob. Names are relative to the part of the pattern before its first wildcard.

    Raises:
        InputError: when a pattern matches nothing or what it names cannot be read, when a name is not UTF-8, or
            when two shards would share one.
    """
    found: dict[str, Shard] = {}
    places: set[str] = set()
    for pattern in patterns:
        with usable(f"shards {pattern!r}"):
            matched = list(_remote(pattern) if "://" in pattern else _local(pattern))
        if not matched:
            raise InputError(
                f"shards {pattern!r}",
                expected="at least one .tar, .tar.gz or .tgz file",
                found="none",
                remedy="Check the path; quote a glob so that the shell leaves it alone.",
            )
        for shard in matched:
            _require_text(shard)
            place = _place(shard)
            if place in places:
                continue  # named by two patterns
            other = found.setdefault(shard.name, shard)
            if other is not shard:
                raise InputError(
                    f"shard name {shard.name!r}",
                    expected="one shard of that name",
                    found=f"it below {other.store.url} and {shard.store.url}",
                    remedy="Name their common parent folder, so that the names differ.",
                )
            places.add(place)
    return [found[name] for name in sorted(found)]


@contextmanager
def usable(what: str) -> Iterator[None]:
    """Look for files; a path that nobody can follow or read is an `InputError` about `what`."""
    try:
        yield
    except CompalignError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # also an unknown user's home, and globs that are none
        raise InputError(
            what,
            expected="a path that can be read",
            found=str(error).rstrip("."),
            remedy="Check how it is written, and who may read what is below it.",
        ) from error


def _require_text(shard: Shard) -> None:
    try:
        shard.name.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"shard name {shard.name!a} in {shard.store.url!a}",
            expected="a name in UTF-8",
            found="other bytes",
            remedy="Rename the file.",
        ) from None


@contextmanager
def opened(shard: Shard) -> Iterator[tuple[BinaryIO, int]]:
    """A shard's bytes as they lie there, read forwards, and how many there are.

    Raises:
        StoreError: when there is no such object, it may not be read, or is another one than `shard.stamp` says.
    """
    size = shard.store.stat(shard.key).size
    with shard.store.open(shard.key, stamp=shard.stamp) as stream:
        yield stream, size


class MemberReader:
    """Members by the place that the index gives, from any number of shards.

    A plain tar is read by range. A compressed one is unpacked forwards: asked in rising order of offset, one
    shard after the other, it is unpacked once. Each step back unpacks it from its beginning again; `restarts`
    counts them.
    """

    def __init__(self) -> None:
        self._shard: Shard | None = None
        self._stream: BinaryIO | None = None
        self._tape: Tape | None = None
        self.restarts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the shard that is being unpacked."""
        if self._stream is not None:
            self._stream.close()
        self._shard = self._stream = self._tape = None

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """The bytes of a member.

        Raises:
            InputError: when the shard has fewer bytes than that, so is not the one that was indexed.
            StoreError: when it cannot be read, or is another object than `shard.stamp` says.
        """
        if shard.compressed:
            data = self._unpacked(shard, offset, length)
        else:
            data = shard.store.read_range(shard.key, offset, length, stamp=shard.stamp)
        if len(data) != length:
            raise InputError(
                f"shard {shard.name} in {shard.store.url}",
                expected=f"{length} bytes at offset {offset}",
                found=f"{len(data)}",
                remedy="The shard changed after it was indexed; index it again.",
            )
        return data

    def _unpacked(self, shard: Shard, offset: int, length: int) -> bytes:
        if self._tape is None or self._shard != shard or self._tape.offset > offset:
            if self._shard == shard:
                self.restarts += 1
                log.debug("%s is unpacked again from its beginning", shard.name)
            self.close()
            self._stream = shard.store.open(shard.key, stamp=shard.stamp)
            self._shard, self._tape = shard, Tape(Inflated(self._stream, _ANY_LENGTH))
        self._tape.skip(offset - self._tape.offset)
        return self._tape.peek(length)


def read_member(shard: Shard, offset: int, length: int) -> bytes:
    """The bytes of one member. For many of a compressed shard use `MemberReader`, which raises the same."""
    with MemberReader() as reader:
        return reader.read(shard, offset, length)


def _place(shard: Shard) -> str:
    if isinstance(shard.store, LocalStore):
        return os.path.realpath(shard.store.path(shard.key))
    return f"{shard.store.url}/{shard.key}"


def _local(pattern: str) -> Iterator[Shard]:
    path = Path(pattern).expanduser()
    if not pattern:
        return
    if path.is_dir():
        yield from _below(path, path)
    elif path.is_file():
        yield Shard(path.name, LocalStore(path.parent), path.name)
    elif _GLOB.search(pattern):
        parts = path.parts
        fixed = next(at for at, part in enumerate(parts) if _GLOB.search(part))
        root, wanted = Path(*parts[:fixed]), "/".join(parts[fixed:])
        if "**" in wanted:
            for shard in _below(root, root) if root.is_dir() else ():
                if _matches(shard.name, wanted) or _matches(shard.name, f"{wanted}/**"):
                    yield shard
            return
        for match in sorted(root.glob(str(Path(*parts[fixed:])))):
            if match.is_dir():
                yield from _below(match, root)
            elif is_shard(match.relative_to(root).as_posix()):
                yield _local_shard(match, root)


def _below(folder: Path, root: Path) -> Iterator[Shard]:
    """The shards below a folder; raises `OSError` for a folder that may not be read, which must not look empty."""
    for place, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in folders):
            if path.is_symlink():
                log.warning("%s is a link to a folder: name what it points to, links are not followed", path)
        for path in (Path(place, name) for name in sorted(files)):
            if is_shard(path.relative_to(root).as_posix()):
                if path.is_file():
                    yield _local_shard(path, root)
                else:
                    log.warning("%s is left out: it is no file, or a link to none", path)


def _fail(error: OSError) -> None:
    raise error


def _local_shard(path: Path, root: Path) -> Shard:
    name = path.relative_to(root).as_posix()
    return Shard(name, LocalStore(root), name)


def _remote(pattern: str) -> Iterator[Shard]:
    scheme, _, rest = pattern.partition("://")
    parts = rest.rstrip("/").split("/")
    wild = next((at for at, part in enumerate(parts) if _GLOB.search(part)), None)
    if wild is None and parts[-1].endswith(SUFFIXES):
        wild = len(parts) - 1
    root = "/".join(parts[:wild])
    wanted = "/".join(parts[wild:]) if wild is not None else "**"
    store = open_store(f"{scheme}://{root}")
    for item in store.list():
        if is_shard(item.key) and _matches(item.key, wanted):
            yield Shard(item.key, store, item.key)


def _matches(name: str, wanted: str) -> bool:
    """Whether a name matches a glob part by part; `**` stands for any number of parts."""
    parts, globs = name.split("/"), wanted.split("/")

    def match(at: int, glob: int) -> bool:
        if glob == len(globs):
            return at == len(parts)
        if globs[glob] == "**":
            return any(match(next_at, glob + 1) for next_at in range(at, len(parts) + 1))
        return at < len(parts) and PurePosixPath(parts[at]).match(globs[glob]) and match(at + 1, glob + 1)

    return match(0, 0)
