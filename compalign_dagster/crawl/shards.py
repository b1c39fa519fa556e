"""Shards: their names, where their bytes lie, how patterns find them, and how members are read by place.

What does not belong here: what is inside a shard (`tar.py`, `index.py`).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from compalign_dagster.crawl.streams import Inflated
from compalign_dagster.crawl.tar import Tape
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore, Store, StoreError, open_store

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
        InputError: when a pattern matches nothing, or two shards would share a name.
    """
    found: dict[str, Shard] = {}
    places: set[str] = set()
    for pattern in patterns:
        matched = list(_remote(pattern) if "://" in pattern else _local(pattern))
        if not matched:
            raise InputError(
                f"shards {pattern!r}",
                expected="at least one .tar, .tar.gz or .tgz file",
                found="none",
                remedy="Check the path; quote a glob so that the shell leaves it alone.",
            )
        for shard in matched:
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
def opened(shard: Shard) -> Iterator[tuple[BinaryIO, int]]:
    """A shard's bytes as they lie there, read forwards, and how many there are.

    Raises:
        StoreError: when there is no such object, or another one than `shard.stamp` says.
        InputError: when the operating system lets nobody read it.
    """
    try:
        size = shard.store.stat(shard.key).size
        stream = shard.store.open(shard.key, stamp=shard.stamp)
    except StoreError:
        raise
    except OSError as error:
        raise InputError(
            f"shard {shard.name} in {shard.store.url}",
            expected="a readable file",
            found=str(error).splitlines()[0],
            remedy="Check that it is still there and may be read.",
        ) from error
    with stream:
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
        return str(shard.store.path(shard.key).resolve())
    return f"{shard.store.url}/{shard.key}"


def _local(pattern: str) -> Iterator[Shard]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        yield from _below(path, path)
    elif path.is_file():
        yield Shard(path.name, LocalStore(path.parent), path.name)
    elif _GLOB.search(pattern):
        parts = path.parts
        fixed = next(at for at, part in enumerate(parts) if _GLOB.search(part))
        root = Path(*parts[:fixed])
        for match in sorted(root.glob(str(Path(*parts[fixed:])))):
            if match.is_dir():
                yield from _below(match, root)
            elif is_shard(match.relative_to(root).as_posix()):
                yield _local_shard(match, root)


def _below(folder: Path, root: Path) -> Iterator[Shard]:
    for match in sorted(folder.rglob("*")):
        if match.is_file() and is_shard(match.relative_to(root).as_posix()):
            yield _local_shard(match, root)


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
