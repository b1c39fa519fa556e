"""img2dataset's parquet output made into webdataset tars: image and caption bytes untouched, every row accounted for.

One tar is made of one file, row by row, so that the crawl has one reader and one way to address an image.
What does not belong here: what a usable image or caption is; the index says that, with its own reasons.
"""

import io
import json
import math
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.parquet import column, from_rows
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, digest_file

_IMAGES = ("jpg", "jpeg", "png", "webp")  # img2dataset names the column after its `encode_format`
_BATCH_ROWS = 16  # decoded at a time
_LONGEST_KEY = 90  # characters: key and extension fit a plain tar header
_DETAIL = 300  # characters of an error message that are kept
_HTTP = re.compile(r"HTTP Error (\d{3})\b")
_WORDS = (  # of img2dataset's error messages, in this order
    ("address refused", "address_refused"), ("unknown url type", "scheme_refused"), ("IncompleteRead", "cut_short"),
    ("larger than", "too_large"), ("timed out", "timed_out"), ("took longer", "timed_out"),
    ("X-Robots-Tag", "disallowed_by_robots_tag"), ("urlopen error", "unreachable"), ("hash mismatch", "hash_mismatch"),
)  # fmt: skip

REFUSED = pa.schema(
    [
        column("row", pa.int64(), "position in the file, from 0"),
        column("rows", pa.int64(), "how many rows this stands for, from that position on"),
        column("key", pa.string(), "key as found", nullable=True),
        column("url", pa.string(), "`url` as found", nullable=True),
        column("reason", pa.string(), "reason code, as compalign land --help lists them"),
        column("detail", pa.string(), "what was found"),
    ]
)


class RefusedRowError(Exception):
    """A row that cannot become a sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail[:_DETAIL]


@dataclass
class Landed:
    """What one file gave: rows = written + refused."""

    rows: int
    written: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    columns_left_out: list[str] = field(default_factory=list)  # of a type that JSON does not have
    already_there: bool = False

    def stats(self) -> dict[str, Any]:
        """JSON values, in the words of img2dataset's `NAME_stats.json`."""
        return {
            "count": self.rows,
            "successes": self.written,
            "status_dict": dict(sorted(self.refused.items())),
            "columns_left_out": self.columns_left_out,
        }


def land_file(path: Path, landing: Store, *, member_bytes: int, name: str | None = None, expected: int = 0) -> Landed:
    """Put `NAME.tar`, and beside it `NAME.refused.parquet` and `NAME_stats.json`, into a landing folder.

    NAME is the file's unless given. Rows that are fewer than `expected` count as refused, `not_reported`.
    The tar is put last and whole; without a usable row there is none.
    Equal files give equal tars, so that landing again changes nothing.

    Raises:
        InputError: when the file is no Parquet with `key` (text) and an image column (bytes), or when the
            landing folder has something else under one of the names.
    """
    name = name or path.name.removesuffix(".parquet")
    with tempfile.TemporaryDirectory() as folder:
        tar, refused = Path(folder, f"{name}.tar"), Path(folder, f"{name}.refused.parquet")
        landed = convert(path, tar, refused, member_bytes=member_bytes, expected=expected)
        stats = Path(folder, f"{name}_stats.json")
        stats.write_bytes(canonical_json(landed.stats()))
        put = [_put(landing, item) for item in (refused, stats, *([tar] if landed.written else []))]
        landed.already_there = not any(put)
    return landed


def convert(path: Path, tar: Path, refused: Path, *, member_bytes: int, expected: int = 0) -> Landed:
    """One file as a tar, and its refused rows; a page of the file is in memory at a time. Raises as `land_file`."""
    try:
        table = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unusable(path, "a Parquet file", str(error).splitlines()[0]) from error
    with table:
        image, columns, left_out = _columns(path, table.schema_arrow)
        landed = Landed(max(table.metadata.num_rows, expected), columns_left_out=left_out)
        keys: set[str] = set()
        with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive, pq.ParquetWriter(refused, REFUSED) as sheet:
            for at, count, row in chain(_rows(table, columns), _absent(table, expected)):
                try:
                    if isinstance(row, RefusedRowError):
                        raise row
                    members = _members(row, image, keys, member_bytes)
                except RefusedRowError as error:
                    landed.refused[error.reason] += count
                    sheet.write_table(from_rows([_refusal(at, count, row, error)], REFUSED))
                    continue
                for member, data in members:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                landed.written += 1
    if landed.rows != landed.written + landed.refused.total():
        raise ConservationError(
            f"file {path}",
            expected=f"{landed.rows} rows written or refused",
            found=f"{landed.written} + {landed.refused.total()}",
            remedy="Write the file again: its footer counts other rows than it holds.",
        )
    return landed


def _columns(path: Path, schema: pa.Schema) -> tuple[str, list[str], list[str]]:
    """The image column, the columns to read, and those that are left out."""
    found = [name for name in _IMAGES if name in schema.names]
    wanted = f"`key` (text) and one of {', '.join(_IMAGES)} (bytes)"
    if not found or "key" not in schema.names or len(set(schema.names)) != len(schema.names):
        raise _unusable(path, wanted, f"columns {', '.join(map(repr, schema.names))[:_DETAIL]}")
    image = found[0]
    for name, right in (("key", _is_text), (image, _is_bytes)):
        if not right(schema.field(name).type):
            raise _unusable(path, wanted, f"{name} of type {schema.field(name).type}")
    usable = [field.name for field in schema if field.name != image and _is_plain(field.type)]
    return image, [image, *usable], [name for name in schema.names if name not in (image, *usable)]


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _rows(table: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, int, dict[str, Any] | RefusedRowError]]:
    """Position, count and values of every row; a stretch that cannot be read is one refusal. Text comes as bytes."""
    start = 0
    for group in range(table.num_row_groups):
        at, end = start, start + table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                texts = [array.cast(pa.large_binary()) if _is_text(array.type) else array for array in batch.columns]
                for values in zip(*texts, strict=True):
                    yield at, 1, {name: value.as_py() for name, value in zip(batch.schema.names, values, strict=True)}
                    at += 1
        except (OSError, pa.ArrowException) as error:
            detail = f"row group {group}: {str(error).splitlines()[0]}"
            yield at, end - at, RefusedRowError("unreadable", detail)
        start = end


def _absent(table: pq.ParquetFile, expected: int) -> Iterator[tuple[int, int, RefusedRowError]]:
    """The rows that were asked for and that the file says nothing of."""
    there = table.metadata.num_rows
    if there < expected:
        yield there, expected - there, RefusedRowError("not_reported", f"expected {expected} rows, found {there}")


def _members(row: dict[str, Any], image: str, keys: set[str], member_bytes: int) -> list[tuple[str, bytes]]:
    """The members of a sample, image first; its key is taken from then on."""
    key = _text(row["key"])
    data = row[image]
    status = _text(row.get("status"))
    if not data or (status is not None and status != "success"):
        message = _text(row.get("error_message")) or ""
        raise RefusedRowError(_reason(message, status), message or f"status {status!r} and no image")
    if not key or len(key) > _LONGEST_KEY or not key.isprintable() or re.search(r"[./\\]", key):
        raise RefusedRowError("key_unusable", f"key {key!r}")
    if key in keys:
        raise RefusedRowError("duplicate_key", f"key {key!r}")
    if len(data) > member_bytes:
        raise RefusedRowError("too_large", f"expected at most {member_bytes} bytes, found {len(data)}")
    keys.add(key)
    caption = row.get("caption", row.get("txt"))  # img2dataset writes a missing caption as an empty txt
    facts = {name: _plain(value) for name, value in row.items() if name not in (image, "txt")}
    text = [(f"{key}.txt", caption)] if isinstance(caption, bytes) else []
    return [(f"{key}.{image}", data), *text, (f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())]


def _reason(message: str, status: str | None) -> str:
    if found := _HTTP.match(message):
        return f"http_{found[1]}"
    for words, reason in _WORDS:
        if words in message:
            return reason
    return "image_missing" if status in (None, "success") else "failed"


def _plain(value: Any) -> Any:
    """A value that JSON has; text that is not UTF-8 keeps its bytes as escapes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _text(value) if isinstance(value, bytes) else value


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else None


def _refusal(at: int, count: int, row: dict[str, Any] | RefusedRowError, error: RefusedRowError) -> dict[str, Any]:
    known = {} if isinstance(row, RefusedRowError) else row
    return {
        "row": at,
        "rows": count,
        "key": _text(known.get("key")),
        "url": _text(known.get("url")),
        "reason": error.reason,
        "detail": error.detail,
    }


def _put(landing: Store, item: Path) -> bool:
    if landing.put_new(item.name, item):
        return True
    if digest_file(landing.fetch(item.name)) != digest_file(item):
        raise InputError(
            f"{item.name} in {landing.url}",
            expected="a free name, or the same bytes",
            found="something else",
            remedy="Land into another folder; a landing folder is never written over.",
        )
    return False


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        f"file {PurePosixPath(path)}",
        expected=expected,
        found=found,
        remedy="Give files that img2dataset wrote with output_format=parquet.",
    )
