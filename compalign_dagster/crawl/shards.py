"""Shards: their names, where their bytes lie, and how patterns find them.

What does not belong here: what is inside a shard (`tar.py`, `index.py`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore, Store, open_store

_SUFFIX = ".tar"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Shard:
    """One tar of samples: `key` in `store`, called `name` relative to its landing root."""

    name: str
    store: Store
    key: str

    @property
    def corpus(self) -> str:
        """The first folder of the name, or "crawl" when it has none."""
        folder, slash, _ = self.name.partition("/")
        return folder if slash else "crawl"


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """The shards that the patterns name, sorted by name.

    A pattern is a glob (`**` for any depth), a folder (every `*.tar` below it), a file, or an `s3://`
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
                expected=f"at least one {_SUFFIX} file",
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


def read_member(shard: Shard, offset: int, length: int) -> bytes:
    """The bytes of a member, by the place that the index gives.

    Raises:
        InputError: when the shard has fewer bytes than that, so is not the one that was indexed.
    """
    data = shard.store.read_range(shard.key, offset, length)
    if len(data) != length:
        raise InputError(
            f"shard {shard.name} in {shard.store.url}",
            expected=f"{length} bytes at offset {offset}",
            found=f"{len(data)}",
            remedy="The shard changed after it was indexed; index it again.",
        )
    return data


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
            elif _is_shard(match.relative_to(root).as_posix()):
                yield _local_shard(match, root)


def _below(folder: Path, root: Path) -> Iterator[Shard]:
    for match in sorted(folder.rglob(f"*{_SUFFIX}")):
        if match.is_file() and _is_shard(match.relative_to(root).as_posix()):
            yield _local_shard(match, root)


def _local_shard(path: Path, root: Path) -> Shard:
    name = path.relative_to(root).as_posix()
    return Shard(name, LocalStore(root), name)


def _is_shard(name: str) -> bool:
    """Tars, outside hidden folders and not hidden themselves."""
    return name.endswith(_SUFFIX) and not any(part.startswith(".") for part in name.split("/"))


def _remote(pattern: str) -> Iterator[Shard]:
    scheme, _, rest = pattern.partition("://")
    parts = rest.rstrip("/").split("/")
    wild = next((at for at, part in enumerate(parts) if _GLOB.search(part)), None)
    if wild is None and parts[-1].endswith(_SUFFIX):
        wild = len(parts) - 1
    root = "/".join(parts[:wild])
    wanted = "/".join(parts[wild:]) if wild is not None else "**"
    store = open_store(f"{scheme}://{root}")
    for item in store.list():
        if _is_shard(item.key) and _matches(item.key, wanted):
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
