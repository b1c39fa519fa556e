"""A search for secrets in all that runs leave behind: Dagster's files, logs, what lies in a bucket."""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.s3_server import S3


def _cells(database: Path) -> Iterator[bytes]:
    """Every value of an SQLite database; compressed ones as they were before."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.text_factory = bytes
        tables = [name.decode() for (name,) in connection.execute("select name from sqlite_master where type='table'")]
        for table in tables:
            for row in connection.execute(f'select * from "{table}"'):
                for value in row:
                    data = value if isinstance(value, bytes) else str(value).encode()
                    yield data
                    if data[:1] == b"\x78":
                        try:
                            yield zlib.decompress(data)
                        except zlib.error:
                            continue  # text that begins with an x; it was searched as it is


def _readable(path: str, data: bytes) -> Iterator[bytes]:
    """The bytes of an object, and what is inside where they are compressed."""
    yield data
    if path.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data))
        yield f"{table.schema.metadata} {table.schema} {table.to_pylist()}".encode()


def everything(folder: Path, s3: S3) -> Iterator[tuple[str, bytes]]:
    """All that a run leaves behind: (where, bytes)."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for data in _readable(path.name, path.read_bytes()):
            yield str(path), data
        if path.suffix == ".db":
            yield from ((str(path), data) for data in _cells(path))
    for key in sorted(s3.keys()):
        answer = s3.client.get_object(Bucket=s3.bucket, Key=key)
        yield key, f"{key} {answer['Metadata']} {answer['ResponseMetadata']['HTTPHeaders']}".encode()
        yield from ((key, data) for data in _readable(key, answer["Body"].read()))


def leaks(folder: Path, s3: S3, secrets: Iterable[str]) -> set[str]:
    """Where a secret is; the search knows nothing of where one would be put."""
    wanted = [secret.encode() for secret in secrets]
    return {place for place, data in everything(folder, s3) if any(secret in data for secret in wanted)}
