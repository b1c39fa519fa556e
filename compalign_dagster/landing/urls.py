"""A list of URLs and captions, read in bounded memory and judged row by row before anything is fetched.

What does not belong here: what a name resolves to; `fetch.py` judges that when it connects.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from compalign_dagster.crawl.parquet_shards import REFUSED
from compalign_dagster.errors import InputError
from compalign_dagster.landing.fetch import refusal
from compalign_dagster.parquet import column, from_rows

_ROWS = 10_000
_LONGEST_URL = 8_192
FETCHABLE = pa.schema(
    [
        column("url", pa.string(), "what to fetch"),
        column("caption", pa.string(), "as the list has it", nullable=True),
        column("list_row", pa.int64(), "position in the list, from 0"),
    ]
)
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def judge(url: str | None, *, allow_private: bool = False) -> tuple[str, str] | None:
    """Why a URL is not fetched, as (reason, detail), or None. Nothing is resolved or connected to."""
    if not url or not url.strip():
        return "url_missing", "no URL"
    if len(url) > _LONGEST_URL:
        return "url_unusable", f"expected at most {_LONGEST_URL} characters, found {len(url)}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return "url_unusable", str(error)
    if parts.scheme not in ("http", "https"):
        return "scheme_refused", f"expected http or https, found {parts.scheme[:20]!r}"
    if not host:
        return "url_unusable", "no host"
    try:
        why = refusal(host)
    except ValueError:
        return None  # a name
    return ("address_refused", why) if why and not allow_private else None


def prepare(
    path: Path, out: Path, refused: Path, *, url_col: str, caption_col: str | None, allow_private: bool
) -> tuple[int, int, Counter[str]]:
    """Write the rows to fetch (FETCHABLE) and the refused ones (REFUSED); rows in, rows to fetch, reasons.

    Raises:
        InputError: when the list cannot be read or has no such columns.
    """
    rows = fetchable = 0
    reasons: Counter[str] = Counter()
    with pq.ParquetWriter(out, FETCHABLE) as good, pq.ParquetWriter(refused, REFUSED) as bad:
        for urls, captions in _batches(path, url_col, caption_col):
            judged = [(at, url, judge(url, allow_private=allow_private)) for at, url in enumerate(urls)]
            keep = [at for at, _, why in judged if why is None]
            columns = ([urls[at] for at in keep], [captions[at] for at in keep], [rows + at for at in keep])
            good.write_table(pa.table(dict(zip(FETCHABLE.names, columns, strict=True)), schema=FETCHABLE))
            turned_away = [
                {"row": rows + at, "rows": 1, "url": url, "reason": why[0], "detail": why[1]}
                for at, url, why in judged
                if why is not None
            ]
            bad.write_table(from_rows(turned_away, REFUSED))
            reasons.update(entry["reason"] for entry in turned_away)
            rows, fetchable = rows + len(urls), fetchable + len(keep)
    return rows, fetchable, reasons


def _batches(path: Path, url_col: str, caption_col: str | None) -> Iterator[tuple[list, list]]:
    """URLs and captions, some thousand rows at a time."""
    try:
        if path.suffix == ".txt":
            yield from _lines(path)
            return
        wanted = [url_col, *([caption_col] if caption_col else [])]
        for batch in _tables(path, wanted):
            texts = [batch.column(name).cast(pa.large_binary()).to_pylist() for name in wanted]
            urls, captions = texts[0], texts[1] if caption_col else [None] * batch.num_rows
            yield [_text(url) for url in urls], [_text(caption) for caption in captions]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"list {path}",
            expected=f"parquet, csv, tsv or txt with {url_col!r}" + (f" and {caption_col!r}" if caption_col else ""),
            found=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Name the columns with --url-col and --caption-col, or write the list again.",
        ) from error


def _tables(path: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as table:
            missing = set(wanted) - set(table.schema_arrow.names)
            if missing:
                raise KeyError(f"columns {', '.join(table.schema_arrow.names)}")
            yield from table.iter_batches(_ROWS, columns=wanted)
        return
    if path.suffix not in _SEPARATORS:
        raise KeyError(f"a file called {path.name}")
    with pyarrow.csv.open_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=_SEPARATORS[path.suffix], newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())
        ),
    ) as reader:
        yield from reader


def _lines(path: Path) -> Iterator[tuple[list, list]]:
    with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        lines: list[str] = []
        for line in stream:
            lines.append(line.strip())
            if len(lines) == _ROWS:
                yield lines, [None] * len(lines)
                lines = []
        yield lines, [None] * len(lines)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")
