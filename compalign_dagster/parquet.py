"""Parquet, written one way: a declared schema, bytes that depend on the rows alone.

What belongs here: the few lines every stage's `tables.py` needs. What does not: any column.
"""

from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_ROWS = 65_536


def column(name: str, dtype: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    """One column of a table, with its meaning kept inside the file."""
    return pa.field(name, dtype, nullable=nullable, metadata={"meaning": meaning})


def meaning(field: pa.Field) -> str:
    """What a column made by `column` means."""
    return (field.metadata or {}).get(b"meaning", b"").decode()


def from_rows(rows: list[dict], schema: pa.Schema) -> pa.Table:
    """A table of exactly this schema from dictionaries; a missing key is a null."""
    return pa.Table.from_pylist(rows, schema=schema)


def write(table: pa.Table, path: Path, *, row_group_rows: int = _ROW_GROUP_ROWS) -> Path:
    """Write `table` and return `path`. Equal tables give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_rows)
    return path


def read(source: Path | BinaryIO, columns: list[str] | None = None) -> pa.Table:
    """Read a table back, in file order."""
    return pq.read_table(source, columns=columns, use_threads=False)
