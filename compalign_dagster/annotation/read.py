"""Label exports, JSONL or Parquet, to validated lines; one bad line costs one line.

What belongs here: files and lines. What does not: what a line may say (`schema.py`), and bringing
lines together (`assemble.py`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from compalign_dagster.annotation.schema import JudgedImage, explain
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore, Store, open_store

MAX_LINE_BYTES = 16 << 20
_ENDINGS = (".jsonl", ".parquet")
_WILD = re.compile(r"[*?\[]")
_BOM = b"\xef\xbb\xbf"
_ROWS = 1_000  # Parquet rows in memory at a time


@dataclass(frozen=True)
class Line:
    """One usable line and where it stands, counted from 1."""

    file: str
    line: int
    judged: JudgedImage


@dataclass(frozen=True)
class Rejection:
    """One line that was refused: a row of `tables.REJECTED`."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Export:
    """One file of judgements. `name` is relative to the folder that holds all exports read together."""

    name: str
    store: Store
    key: str


def read_annotations(patterns: Sequence[str]) -> tuple[list[Line], list[Rejection]]:
    """Every line of the exports that the patterns name, in order of file name and line.

    A pattern is a local file, folder or glob, or an `s3://` file or prefix; folders and prefixes stand
    for every `*.jsonl` and `*.parquet` below. Blank lines of JSONL are no lines.

    Raises `InputError` where a pattern matches nothing or a Parquet file is unreadable as a whole.
    """
    return read_exports(find_exports(patterns))


def read_exports(exports: Iterable[Export]) -> tuple[list[Line], list[Rejection]]:
    """Every line of these exports, in order. Raises as `read_annotations` does."""
    lines: list[Line] = []
    rejected: list[Rejection] = []
    for export in exports:
        for result in read_export(export):
            (lines if isinstance(result, Line) else rejected).append(result)  # type: ignore[arg-type]
    return lines, rejected


def find_exports(patterns: Sequence[str]) -> list[Export]:
    """The exports that the patterns name, each once, sorted by name."""
    found: list[tuple[Store, str]] = []
    for pattern in patterns:
        matches = _in_bucket(pattern) if pattern.startswith("s3://") else _on_disk(pattern)
        if not matches:
            raise InputError(
                f"annotations {pattern!r}",
                expected="a .jsonl or .parquet file, or a folder, glob or prefix with some",
                found="none",
                remedy="Check the path; a glob needs ** to look into folders.",
            )
        found += matches
    return named(found)


def named(places: Iterable[tuple[Store, str]]) -> list[Export]:
    """Exports at these places, each once, sorted by name."""
    whole = {f"{store.url}/{key}": (store, key) for store, key in places}
    common = _common_folder(list(whole))
    return [Export(path[len(common) :], store, key) for path, (store, key) in sorted(whole.items())]


def _common_folder(paths: Sequence[str]) -> str:
    """The deepest folder, with its slash, that holds all paths; empty for a disk and a bucket."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    shared = takewhile(lambda names: len(set(names)) == 1, levels)
    return "".join(f"{names[0]}/" for names in shared)


def _on_disk(pattern: str) -> list[tuple[Store, str]]:
    path = Path(pattern).expanduser()
    matches = [path] if path.exists() else []
    if not matches and (wild := [at for at, part in enumerate(path.parts) if _WILD.search(part)]):
        root, rest = Path(*path.parts[: wild[0]]), Path(*path.parts[wild[0] :])
        matches = sorted(root.glob(str(rest)))
    files = [file for match in matches for file in _below(match)]
    return [(LocalStore(file.parent), file.name) for file in files]


def _below(path: Path) -> list[Path]:
    """The exports below a folder, hidden ones left out; a file is its own answer."""
    if not path.is_dir():
        return [path.absolute()] if path.suffix in _ENDINGS else []
    found = (item for ending in _ENDINGS for item in path.absolute().rglob(f"*{ending}") if item.is_file())
    depth = len(path.absolute().parts)
    return [item for item in found if not any(part.startswith(".") for part in item.parts[depth:])]


def _in_bucket(pattern: str) -> list[tuple[Store, str]]:
    folder, _, name = pattern.rstrip("/").rpartition("/")
    if name.endswith(_ENDINGS):
        store = open_store(folder)
        return [(store, name)] if store.exists(name) else []
    store = open_store(pattern.rstrip("/"))
    return [(store, item.key) for item in store.list() if item.key.endswith(_ENDINGS)]


def read_export(export: Export) -> Iterator[Line | Rejection]:
    """One result per line, in order."""
    if export.key.endswith(".parquet"):
        yield from _parquet_lines(export)
    else:
        with export.store.open(export.key) as stream:
            yield from jsonl_lines(stream, export.name)


def jsonl_lines(stream: BinaryIO, file: str) -> Iterator[Line | Rejection]:
    """One result per line that is not blank. No bytes whatever make this raise."""
    for number, data in enumerate(_bounded_lines(stream), start=1):
        if data is None:
            yield Rejection(file, number, "line_too_long", f"more than {MAX_LINE_BYTES} bytes")
            continue
        text = bytes(data).removeprefix(_BOM).strip() if number == 1 else bytes(data).strip()
        if text:
            yield parse_line(text, file, number)


def parse_line(text: bytes, file: str, number: int) -> Line | Rejection:
    """One JSONL line, validated."""
    try:
        return Line(file, number, JudgedImage.model_validate_json(text))
    except ValidationError as error:
        return Rejection(file, number, *explain(error))


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a stream; None for one longer than allowed, which is read past piece by piece."""
    while data := stream.readline(MAX_LINE_BYTES + 1):
        if len(data) <= MAX_LINE_BYTES:
            yield data
            continue
        while data and not data.endswith(b"\n"):
            data = stream.readline(MAX_LINE_BYTES + 1)
        yield None


def _parquet_lines(export: Export) -> Iterator[Line | Rejection]:
    try:
        with pq.ParquetFile(export.store.fetch(export.key)) as table:
            number = 0
            for batch in table.iter_batches(_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield _parse_row(row, export.name, number)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"annotations {export.store.url}/{export.key}",
            expected="a readable Parquet file",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="Export the judgements again.",
        ) from error


def _parse_row(row: dict[str, Any], file: str, number: int) -> Line | Rejection:
    try:
        return Line(file, number, JudgedImage.model_validate(_as_json(row)))
    except ValidationError as error:
        return Rejection(file, number, *explain(error))


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A Parquet row as the JSON it stands for.

    Ratings are a map, or a struct with a field per caption id, in which Arrow fills up what is
    missing with nulls; a null list or map is an empty one.
    """
    judgements = row.get("judgements")
    if not isinstance(judgements, list):
        return row
    return {
        **row,
        "judgements": [_judgement(item) if isinstance(item, dict) else item for item in judgements],
    }


def _judgement(judgement: dict[str, Any]) -> dict[str, Any]:
    ratings = judgement.get("ratings")
    if isinstance(ratings, list):
        ratings = dict(ratings)
    if isinstance(ratings, dict):
        ratings = {caption: given for caption, given in ratings.items() if given is not None}
    return {**judgement, "ranking": judgement.get("ranking") or [], "ratings": ratings or {}}
