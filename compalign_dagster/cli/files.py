"""Files that verbs read and write: tables that appear whole or not at all, and score files by pattern."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.crawl.shards import usable
from compalign_dagster.errors import InputError
from compalign_dagster.store import open_store

SIDECAR = ".quarantine.parquet"
_GLOB = re.compile(r"[*?\[]")


def sidecar(out: Path) -> Path:
    """Where the quarantine of a table lies: FILE.parquet -> FILE.quarantine.parquet."""
    return out.with_name(out.name.removesuffix(".parquet") + SIDECAR)


@contextmanager
def table_file(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file written piece by piece; it replaces `path` once it is whole, or leaves no trace."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(temporary, schema, compression="zstd")
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with writer:
            yield writer
        if path.is_dir():
            raise unwritable(path, IsADirectoryError("a folder"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Readable JSON that replaces `path` whole."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a place that cannot be written."""
    return InputError(
        f"output {path}",
        expected="a place that can be written",
        found=str(error),
        remedy="Choose another --out.",
    )


def find_tables(patterns: Sequence[str], what: str = "scores") -> list[Path]:
    """Local Parquet files that the patterns name, each once: files, folders, globs, `s3://` prefixes.

    Quarantine files beside score files are left out. Raises `InputError` when a pattern matches none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        with usable(f"{what} {pattern!r}"):
            matched = [path for path in _matches(pattern) if not path.name.endswith(SIDECAR)]
        if not matched:
            raise InputError(
                f"{what} {pattern!r}",
                expected="at least one .parquet file",
                found="none",
                remedy="Check the path; quote a glob so that the shell leaves it alone.",
            )
        found.update(dict.fromkeys(path.resolve() for path in matched))
    return list(found)


def _matches(pattern: str) -> list[Path]:
    if "://" in pattern:
        folder, _, name = pattern.rstrip("/").rpartition("/")
        if name.endswith(".parquet") and not _GLOB.search(folder):
            store = open_store(folder)
            return [store.fetch(item.key) for item in store.list() if Path(item.key).match(name)]
        store = open_store(pattern)
        return [store.fetch(item.key) for item in store.list() if item.key.endswith(".parquet")]
    if not pattern:
        return []
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(item for item in path.rglob("*.parquet") if item.is_file() and not item.name.startswith("."))
    if path.is_file():
        return [path]
    wild = next((at for at, part in enumerate(path.parts) if _GLOB.search(part)), None)
    if wild is None:
        return []
    root = Path(*path.parts[:wild])
    return sorted(item for item in root.glob(str(Path(*path.parts[wild:]))) if item.suffix == ".parquet")
