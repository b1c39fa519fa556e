"""A version as files for those who have no store: tables, identifiers, tars, a description, a card.

What belongs here: writing each file whole, in bounded memory, and what was written. What does not: what the
description and the card say (`croissant.py`, `card.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import InputError
from compalign_dagster.selection import croissant
from compalign_dagster.selection.card import CARD, data_card
from compalign_dagster.selection.croissant_check import RECORD
from compalign_dagster.selection.pairs import dropped_frames, kept_frames
from compalign_dagster.selection.resharding import reshard
from compalign_dagster.selection.tables import DROPPED, KEPT
from compalign_dagster.selection.uids import write_uids
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store
from compalign_dagster.versions import digest_file

FORMATS = ("parquet", "uids", "tars", "croissant", "card")
Entry = dict[str, Any]

_ROW_GROUP_ROWS = 65_536
_REPEATED = ("shard", "corpus", "reason")  # a dictionary of other columns costs time and saves nothing
_ID_ROWS = 100_000


def export(
    version: Version,
    folder: Path,
    formats: Iterable[str],
    *,
    landing: Store,
    dropped: bool = False,
    per_shard: int = 10_000,
    plots: Callable[[Version], Mapping[str, tuple[bytes, str]]] = lambda version: {},
) -> Entry:
    """Write a published version into `folder` and return what was written, which is `export.json` there, too.

    Every Croissant description describes `kept.parquet`, so that this is written with it. `plots` draws the pictures
    of the card: name -> (PNG, what it shows).

    Raises:
        InputError: when the folder holds the export of another version, or tars.
        PairChangedError: for a kept pair whose bytes or caption are not there any more.
    """
    wanted = set(formats)
    earlier = _earlier(folder, version, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder, version, earlier)  # whatever happens now, no other version is written beside these files
    files: dict[str, Entry] = {}
    if wanted & {"parquet", "croissant"}:
        about = "The kept pairs, in reading order: by batch, shard, and place in the shard."
        files["kept.parquet"] = _table(folder / "kept.parquet", KEPT, kept_frames(version), about)
    if dropped:
        about = "The dropped pairs, each with its reason."
        files["dropped.parquet"] = _table(folder / "dropped.parquet", DROPPED, dropped_frames(version), about)
    if "uids" in wanted:
        files["uids.npy"] = _uids(version, folder / "uids.npy")
    if "tars" in wanted:
        files |= _tars(version, landing, folder, per_shard)
    if "card" in wanted:
        files |= _card(version, folder, files, plots(version))
    if "croissant" in wanted or croissant.NAME in earlier:  # an earlier description names what is beside it by now
        beside = {name: entry for name, entry in {**earlier, **files}.items() if name != croissant.NAME}
        text = json.dumps(croissant.describe(version, beside), indent=1, ensure_ascii=False)
        files[croissant.NAME] = _written(folder / croissant.NAME, text.encode(), "This description.")
    return _record(folder, version, {**earlier, **files})


def _record(folder: Path, version: Version, files: Mapping[str, Entry]) -> Entry:
    record = {
        "schema_version": 1,
        "version": version.artifact.manifest_key,
        "data_version": version.artifact.data_version,
        "files": dict(sorted(files.items())),
    }
    _written(folder / RECORD, json.dumps(record, indent=1).encode(), "")
    return record


def _earlier(folder: Path, version: Version, wanted: set[str]) -> dict[str, Entry]:
    """What an earlier export of the same version left; nothing of another one may stay beside the new files."""
    found, files = None, {}
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_bytes())
        there = record.get("data_version")
        found = None if there == version.artifact.data_version else f"the export of version {there}"
        files = {name: entry for name, entry in record.get("files", {}).items() if (folder / name).is_file()}
    if "tars" in wanted and any((folder / "shards").glob("*.tar")):
        found = "tars"
    if found:
        raise InputError(
            f"output {folder}",
            expected="an empty folder, or an earlier export of the same version without tars",
            found=found,
            remedy="Choose another --out.",
        )
    return files


def write_table(path: Path, schema: pa.Schema, frames: Iterable[pl.DataFrame]) -> int:
    """Write a Parquet file a row group at a time, under its name once it is whole; how many rows it has."""
    part = path.with_name(f".{path.name}.part")
    repeated = [name for name in _REPEATED if name in schema.names]
    rows = 0
    try:
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=repeated) as writer:  # type: ignore[arg-type] # takes a list too
            for frame in _joined(frames, _ROW_GROUP_ROWS):
                writer.write_table(frame.select(schema.names).to_arrow().cast(schema))
                rows += frame.height
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return rows


def _table(path: Path, schema: pa.Schema, frames: Iterable[pl.DataFrame], about: str) -> Entry:
    return _entry(path, about, write_table(path, schema, frames))


def _joined(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in pieces of at least so many, but for the last."""
    waiting: list[pl.DataFrame] = []
    for frame in frames:
        waiting.append(frame)
        if sum(part.height for part in waiting) >= rows:
            yield pl.concat(waiting)
            waiting = []
    if waiting:
        yield pl.concat(waiting)


def write_ids(path: Path, version: Version) -> int:
    """Write the kept pairs' identifiers as `uids.write_uids` does, under their name once they are whole; how many."""
    kept = (version.kept(batch, ["pair_id"], in_order=False)["pair_id"] for batch in version.batches())
    parts = (ids[start : start + _ID_ROWS].to_list() for ids in kept for start in range(0, len(ids), _ID_ROWS))
    part = path.with_name(f".{path.name}.part")
    try:
        count = write_uids(part, parts)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _uids(version: Version, path: Path) -> Entry:
    about = "The pair_ids of the kept pairs as numbers, each once, sorted: numpy, dtype u8,u8."
    count = write_ids(path, version)
    return _entry(path, about, count)


def _tars(version: Version, landing: Store, folder: Path, per_shard: int) -> dict[str, Entry]:
    shards = {name: Shard(name, landing, name) for name in version.shards["shard"]}
    paths = reshard(kept_frames(version), shards, folder / "shards", per_shard)
    about = "Kept images, byte for byte as they landed, and their captions, as webdataset samples."
    return {f"shards/{path.name}": _entry(path, about) for path in paths}


def _card(
    version: Version, folder: Path, files: Mapping[str, Entry], plots: Mapping[str, tuple[bytes, str]]
) -> dict[str, Entry]:
    drawn = {name: _written(folder / name, data, about) for name, (data, about) in plots.items()}
    text = data_card(version, files, {name: about for name, (_, about) in plots.items()})
    return {**drawn, CARD: _written(folder / CARD, text.encode(), "The data card: for people.")}


def _written(path: Path, data: bytes, about: str) -> Entry:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return _entry(path, about)


def _entry(path: Path, about: str, records: int | None = None) -> Entry:
    entry: Entry = {"sha256": digest_file(path), "bytes": path.stat().st_size, "about": about}
    return entry if records is None else {**entry, "records": records}
