"""The block list: which pairs must not be kept, whatever their reward, and who asked for that.

What belongs here: entries, made safe; the list in force; which pairs of an index it names. What does not:
requests of people and what a purge removes (`lineage/takedown.py`).

An entry never holds a URL or a caption: a URL is kept as its SHA-256, so that the list can stop a second delivery
after everything else of a pair was purged.
"""

import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa

from compalign_dagster import artifacts, decisions, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.hosts import hosts_of, normal_host
from compalign_dagster.selection import reasons
from compalign_dagster.store import Store
from compalign_dagster.versions import digest_bytes, digest_json, work_key

KIND = "block_list"
CODE_VERSION = 1
KINDS = ("pair_id", "image_sha256", "url", "url_host", "image_near")
NEAR_BITS = 8
"""How many of 64 bits a perceptual hash may differ in, where a request does not say."""

BLOCKS = pa.schema(
    [
        parquet.column("kind", pa.string(), "pair_id | image_sha256 | url | url_host | image_near"),
        parquet.column("value", pa.string(), "hex digits; of a url its SHA-256; of a url_host the host, lower case"),
        parquet.column("distance", pa.int32(), "of image_near: bits in which a perceptual hash may differ, else 0"),
        parquet.column("reason", pa.string(), "takedown | evaluation_overlap"),
        parquet.column("request", pa.string(), "who asked: the request's name"),
    ]
)
_NAME = f"latest/{KIND}"
_HEX = {"pair_id": 32, "image_sha256": 64, "url": 64, "image_near": 16}
_MOST_BITS = 16
_LONGEST_URL = 8_192
_LONGEST_REQUEST = 200
_OCCURRENCE = ["shard", "key", "caption_index"]
COLUMNS = [*_OCCURRENCE, "pair_id", "image_sha256", "image_phash", "url"]
_NOTHING = pl.DataFrame(
    schema={
        "shard": pl.String,
        "key": pl.String,
        "caption_index": pl.Int32,
        **dict.fromkeys(("pair_id", "image_sha256", "reason", "request"), pl.String),
        "order": pl.Int8,
    }
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, order=True)
class Entry:
    """One line of the block list; made by `entry`, so that its values are what the schema says."""

    kind: str
    value: str
    distance: int
    reason: str
    request: str


def entry(kind: str, value: str, *, request: str, reason: str = reasons.TAKEDOWN, distance: int | None = None) -> Entry:
    """A checked entry. Hex digits may be of any case; a `url` is given as found, or as its SHA-256.

    A `url_host` names the host and every host below it. `distance` is for `image_near`: 0 to 16 bits.

    Raises:
        InputError: for an unknown kind or reason, a value that is none of its kind, and a request without a name.
    """
    if kind not in KINDS or reason not in reasons.OF_BLOCK_LIST:
        known, found = (KINDS, kind) if kind not in KINDS else (reasons.OF_BLOCK_LIST, reason)
        raise _refused("kind or reason", f"one of {', '.join(known)}", found)
    named = "".join(char for char in " ".join(request.split()) if char.isprintable())[:_LONGEST_REQUEST]
    if not named:
        raise _refused("request", "a name to find it by", request)
    near = 0
    if kind == "image_near":
        near = NEAR_BITS if distance is None else distance
        if not 0 <= near <= _MOST_BITS:
            raise _refused("distance", f"0 to {_MOST_BITS} bits", str(near))
    elif distance:
        raise _refused("distance", f"none for {kind}", str(distance))
    return Entry(kind, _checked(kind, value), near, reason, named)


def _checked(kind: str, value: str) -> str:
    if kind == "url_host":
        return _host(value)
    digits = value.strip().lower()
    if re.fullmatch(f"[0-9a-f]{{{_HEX[kind]}}}", digits):
        return digits
    if kind == "url" and value and len(value) <= _LONGEST_URL:
        return url_digest(value)
    raise _refused(kind, "a URL as found" if kind == "url" else f"{_HEX[kind]} hex digits", value)


def _host(value: str) -> str:
    """A host as it is compared. One label alone would be a whole top-level domain, so it is refused."""
    host = normal_host(value.strip().removeprefix("*.")) or ""
    labels = host.split(".")
    if len(host) <= 253 and len(labels) > 1 and all(map(_LABEL.fullmatch, labels)):
        return host
    with suppress(ValueError):
        return ip_address(host.strip("[]")).compressed
    raise _refused("url_host", "a host name such as images.example.com", value)


def _refused(what: str, expected: str, found: str) -> InputError:
    return InputError(
        f"block list: {what}", expected=expected, found=repr(found[:80]), remedy="Correct this entry of the request."
    )


def url_digest(url: str) -> str:
    """What the list keeps of a URL, 64 hex digits."""
    return digest_bytes(url.encode("utf-8", "surrogatepass"))


def in_force(store: Store) -> Artifact | None:
    """The newest block list, or None before the first. `CompalignError` when it is gone."""
    return numbered(store)[0]


def numbered(store: Store) -> tuple[Artifact | None, int]:
    """As `in_force`, and its number as a decided fact: a later list has a larger one; 0 before the first."""
    return latest.numbered(store, KIND) if decisions.current(store, _NAME) else (None, 0)


def number_of(artifact: Artifact) -> int:
    """The number of the block list that a dataset or a list names among its inputs; 0 where it names none.

    A list that came back by a withdrawal counts from when it came back.
    """
    named = [item.key for item in artifact.inputs if item.kind == KIND]
    now = decisions.current(artifact.store, _NAME) if named else None
    if now is None or now.value["manifest"] in named:
        return now.version if now else 0
    made = decisions.history(artifact.store, _NAME)
    return max((fact.version for fact in made if fact.value["manifest"] in named), default=0)


def entries(listed: Artifact | None) -> pa.Table:
    """The entries of a block list (BLOCKS); of None, no rows."""
    return parquet.read(listed.fetch("entries.parquet")) if listed else BLOCKS.empty_table()


def add(store: Store, new: Iterable[Entry]) -> Artifact:
    """The block list with these entries added, in force. Nothing is written when it has them all.

    Two who add at once both win: whoever comes second adds to what the first has made.
    """
    wanted = set(new)
    return _revise(store, lambda now: now | wanted)


def withdraw(store: Store, request: str, *, but: Collection[Entry] = ()) -> Artifact:
    """The block list without the entries of a request, other than those in `but`: what was purged stays blocked.

    Raises:
        InputError: when the list has no entry of this request.
    """
    if request not in entries(in_force(store))["request"].to_pylist():
        raise InputError(
            f"request {request!r}",
            expected="a request with entries in the block list",
            found="none",
            remedy="`compalign takedown --list` shows the requests.",
        )
    return _revise(store, lambda now: {item for item in now if item.request != request or item in but})


def _revise(store: Store, change: Any) -> Artifact:
    def make(now: Artifact | None) -> Artifact:
        before = {Entry(**row) for row in entries(now).to_pylist()}
        after = change(before)
        return now if now is not None and after == before else _publish(store, sorted(after))

    return latest.advance(store, KIND, make)


def _publish(store: Store, listed: Sequence[Entry]) -> Artifact:
    rows = [asdict(item) for item in listed]
    key = work_key(KIND, code_version=CODE_VERSION, inputs=[digest_json(rows)], config={})
    counts = {name: sum(item.kind == name for item in listed) for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        path = parquet.write(parquet.from_rows(rows, BLOCKS), Path(folder, "entries.parquet"))
        return artifacts.publish(
            store,
            KIND,
            key,
            {"entries.parquet": path},
            code_version=CODE_VERSION,
            inputs=[],
            config={},
            facts={"entries": len(rows), "requests": len({item.request for item in listed}), "by_kind": counts},
        )


def matches(pairs: Iterable[Path | BinaryIO], blocks: pa.Table) -> pl.DataFrame:
    """The occurrences in these pair indexes (PAIRS tables) that the list names: shard, key, caption_index, reason.

    Sorted by occurrence; where several entries name one, the reason that comes first in `reasons.ORDER`.
    One index is in memory at a time.
    """
    found = named((pl.read_parquet(index, columns=COLUMNS) for index in pairs), blocks)
    return found.select(*_OCCURRENCE, "reason")


def named(indexes: Iterable[pl.DataFrame], blocks: pa.Table) -> pl.DataFrame:
    """As `matches`, with `pair_id`, `image_sha256` and the `request` whose entry decided; of frames with COLUMNS."""
    listed = pl.DataFrame(pl.from_arrow(blocks)).with_columns(
        order=pl.col("reason").replace_strict({name: at for at, name in enumerate(reasons.ORDER)}, return_dtype=pl.Int8)
    )
    found = [_named_in(index, listed) for index in indexes] if listed.height else []
    return (
        pl.concat([_NOTHING, *found])
        .sort([*_OCCURRENCE, "order", "request"])
        .unique(_OCCURRENCE, keep="first", maintain_order=True)
        .drop("order")
    )


def _named_in(rows: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
    """Every (occurrence, entry) of one index."""
    parts = []
    for (kind,), of_kind in listed.group_by("kind"):
        candidates = rows.select(*_OCCURRENCE, "pair_id", "image_sha256", _VALUES[str(kind)](rows, of_kind))
        if isinstance(candidates.schema["value"], pl.List):
            candidates = candidates.explode("value")
        parts.append(
            candidates.drop_nulls("value").join(of_kind.select("value", "reason", "request", "order"), on="value")
        )
    return pl.concat([part.select(_NOTHING.columns) for part in parts])


def _by_column(name: str) -> Any:
    return lambda rows, listed: rows[name].cast(pl.String).alias("value")


def _by_url(rows: pl.DataFrame, listed: pl.DataFrame) -> pl.Series:
    """The digest of each URL."""
    return _each(rows["url"], lambda url: [url_digest(url)])


def _by_host(rows: pl.DataFrame, listed: pl.DataFrame) -> pl.Series:
    """The listed hosts that each URL is of: its own, and those above it."""
    hosts = set(listed["value"])

    def listed_above(host: str) -> list[str]:
        labels = host.split(".")
        above = (".".join(labels[at:]) for at in range(len(labels)))
        return [host for host in above if host in hosts]

    return _each(hosts_of(rows["url"]), listed_above)


def _by_looks(rows: pl.DataFrame, listed: pl.DataFrame) -> pl.Series:
    """The listed perceptual hashes that each image's hash is near."""
    hashes = rows["image_phash"].unique().drop_nulls()
    numbers = np.array([int(text, 16) for text in hashes], np.uint64)
    near: dict[str, list[str]] = {}
    for value, distance in listed.select("value", "distance").unique().sort("value").iter_rows():
        bits = np.bitwise_count(numbers ^ np.uint64(int(value, 16)))
        for at in np.flatnonzero(bits <= distance).tolist():
            near.setdefault(hashes[at], []).append(value)
    return _each(rows["image_phash"], lambda text: sorted(set(near.get(text, []))))


def _each(texts: pl.Series, values: Any) -> pl.Series:
    """`values` of each text as lists called `value`, worked out once for equal texts."""
    known = {text: values(text) for text in texts.cast(pl.String).unique().drop_nulls()}
    return pl.Series("value", [known.get(text) for text in texts], pl.List(pl.String))


_VALUES = {
    "pair_id": _by_column("pair_id"),
    "image_sha256": _by_column("image_sha256"),
    "url": _by_url,
    "url_host": _by_host,
    "image_near": _by_looks,
}
