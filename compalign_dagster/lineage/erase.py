"""What of one file has to go: rows of a table, members of a tar, a page. Pure functions of bytes and a target.

What belongs here: finding and emptying. What does not: which files there are, and writing them (`purge.py`).
"""

import html
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO

import polars as pl
import pyarrow as pa

from compalign_dagster.crawl.samples import split_name
from compalign_dagster.crawl.tar import Member, Tape, walk

MARKER = b"redacted"
_EMPTIED: Mapping[str, Any] = {"caption": "", "url": None, "detail": "", "embedding": None}
_BY_CONTENT = {"pair_id": "pair_ids", "image_sha256": "images", "image_id": "images"}
_FOLDED = 80  # characters of a text that are looked for: pages cut captions
SHORTEST = 8  # a shorter text would be found everywhere
_LARGEST_JSON = 1 << 20
_TAG = re.compile(r"<[^<>]{0,2000}>")


@dataclass(frozen=True)
class Target:
    """What has to go, by place and by content."""

    samples: frozenset[tuple[str, str]] = frozenset()  # (shard, key)
    pair_ids: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()  # SHA-256, hex
    lengths: frozenset[int] = frozenset()  # bytes of those images
    texts: frozenset[str] = frozenset()  # captions and URLs
    _needles: list[str] = field(default_factory=list, compare=False, repr=False)

    def needles(self) -> list[str]:
        """What a page that shows one of these pairs has in its text, folded."""
        if not self._needles:
            places = {_folded(f"{shard} {key}") for shard, key in self.samples}
            texts = {_folded(text)[:_FOLDED] for text in self.texts}
            found = {text for text in texts if len(text) >= SHORTEST} | places | self.pair_ids | self.images
            self._needles.extend(sorted(found))
        return self._needles


def emptied(table: pa.Table, target: Target, request: str) -> tuple[pa.Table, int] | None:
    """The table without the texts and vectors of the target's rows, and how many rows that are; None where none are.

    Rows, their order and every other column stay. The file says under `redacted` in its metadata by which request.
    """
    texts = [name for name in _EMPTIED if name in table.column_names and _holds_bytes(table[name].type)]
    mine = _rows_of(table, target)
    if not texts or mine is None:
        return None
    frame = pl.DataFrame(pl.from_arrow(table.select(texts))).with_columns(mine=mine)
    rows = frame.filter("mine", pl.any_horizontal(pl.col(texts).cast(pl.Binary).fill_null(b"") != b"")).height
    if not rows:
        return None
    for name in texts:
        at = table.column_names.index(name)
        instead = _EMPTIED[name] if table.field(name).nullable else ""
        column = frame.select(
            pl.when("mine").then(pl.lit(instead).cast(frame.schema[name])).otherwise(name).alias(name)
        )
        table = table.set_column(at, table.field(name), column.to_arrow()[name].cast(table[name].type))
    before = (table.schema.metadata or {}).get(MARKER, b"").decode()
    marked = ", ".join(dict.fromkeys([*filter(None, [before]), request]))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), MARKER: marked.encode()}), rows


def _holds_bytes(dtype: pa.DataType) -> bool:
    return pa.types.is_string(dtype) or pa.types.is_binary(dtype)


def identifying(names: Collection[str]) -> list[str]:
    """The columns by which a table's rows are known to be a target's; none for a table without texts and vectors."""
    if not set(names) & set(_EMPTIED):
        return []
    content = [name for name in _BY_CONTENT if name in names]
    return content or [name for name in ("shard", "key") if {"shard", "key"} <= set(names)]


def touches(ids: pa.Table, target: Target) -> bool:
    """Whether a row is the target's; `ids` has the columns of `identifying`."""
    mine = _rows_of(ids, target)
    return mine is not None and bool(mine.any())


def untold(table: pa.Table, target: Target) -> bool:
    """Whether `detail` has a text of the target in a row that names no sample."""
    frame = pl.DataFrame(pl.from_arrow(table))
    if "key" in frame.columns:
        frame = frame.filter(pl.col("key").is_null())
    told = [_folded(text) for text in frame["detail"].drop_nulls().unique()]
    return any(needle in text for text in told for needle in target.needles())


def _rows_of(table: pa.Table, target: Target) -> pl.Series | None:
    """Which rows are the target's: by content where the table says it, else by place."""
    content = [name for name in _BY_CONTENT if name in table.column_names]
    if content:
        frame = pl.DataFrame(pl.from_arrow(table.select(content)))
        any_of = [pl.col(name).is_in(sorted(getattr(target, _BY_CONTENT[name]))).fill_null(False) for name in content]
        return frame.select(pl.any_horizontal(any_of)).to_series()
    if not {"shard", "key"} <= set(table.column_names):
        return None
    places = zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)
    return pl.Series([place in target.samples for place in places], dtype=pl.Boolean)


def landed_blanks(stream: BinaryIO, length: int, keys: Collection[str], target: Target) -> list[tuple[int, int]]:
    """The (offset, length) of members of these samples, and of the target's images under any name, in a plain tar."""
    return [
        (member.offset, member.size)
        for member in _files(stream, length)
        if split_name(member.name)[0] in keys
        or (member.size in target.lengths and sha256(member.read()).hexdigest() in target.images)
    ]


def resharded_blanks(stream: BinaryIO, length: int, target: Target) -> list[tuple[int, int]]:
    """The same of a tar that `selection/resharding.py` wrote: its .json members name their source."""
    places: dict[str, list[tuple[int, int]]] = {}
    gone = set()
    for member in _files(stream, length):
        key, extension = split_name(member.name)
        places.setdefault(key, []).append((member.offset, member.size))
        if member.size in target.lengths and sha256(data := member.read()).hexdigest() in target.images:
            gone.add(key)
        elif extension == "json" and member.size <= _LARGEST_JSON:
            data = member.read() if member.tape.offset == member.offset else b""
            if _names(data, target):
                gone.add(key)
    return [place for key in sorted(gone) for place in places[key]]


def _files(stream: BinaryIO, length: int) -> Iterator[Member]:
    for member in walk(Tape(stream), length):
        if isinstance(member, Member) and member.kind == "file" and member.size:
            yield member


def _names(data: bytes, target: Target) -> bool:
    try:
        facts = json.loads(data)
        source = facts.get("source") or facts
        if "pair_ids" in facts:  # content before place: another delivery has other samples at the same place
            return bool(target.pair_ids & set(facts["pair_ids"]))
        return (source.get("shard"), source.get("key")) in target.samples
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False  # zeros of an earlier purge, or not ours


def is_blank(stream: BinaryIO, places: Collection[tuple[int, int]]) -> bool:
    """Whether nothing but zeros is left at all of these places."""
    for offset, length in places:
        stream.seek(offset)
        if stream.read(length).strip(b"\0"):
            return False
    return True


def shows(page: bytes, target: Target) -> bool:
    """Whether a page or another text shows one of the target's pairs: a caption, a URL, its id or its place."""
    text = _folded(html.unescape(_TAG.sub(" ", page.decode("utf-8", "replace"))))
    return any(needle in text for needle in target.needles())


def _folded(text: str) -> str:
    """Letters and digits alone: pages wrap, cut and replace the rest."""
    return "".join(filter(str.isalnum, text.casefold()))
