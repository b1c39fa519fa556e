"""Taking pairs out of every file that holds their bytes, captions or URLs, with a record of each file.

What belongs here: which files there are, planning, recording, writing. What does not: what of one file has to go
(`erase.py`), which pairs (`takedown.py`).

Planned first, recorded second, written third: a purge that is killed runs again and goes on. Indexes are written last:
while they tell of a pair, whatever else holds it is found.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import erase, redaction
from compalign_dagster.lineage.erase import Target
from compalign_dagster.lineage.places import Delivery
from compalign_dagster.lineage.redaction import Change
from compalign_dagster.store import LocalStore, ObjectMissingError, Store, seekable
from compalign_dagster.store.base import changed

_MANIFEST = "/manifest.json"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_TEXTS = (".html", ".svg", ".md", ".json", ".jsonl", ".csv", ".txt")
_CHUNK = 1 << 20
_INDEXES = "raw_crawl_shards/"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Purged:
    """What was done, and what a person has to do."""

    changes: tuple[Change, ...]
    remaining: tuple[str, ...]  # one sentence each


@dataclass(frozen=True)
class _Step:
    """One change and how it is made."""

    change: Change
    make: Callable[[], None]


@dataclass
class _Plan:
    steps: list[_Step] = field(default_factory=list)
    remaining: list[str] = field(default_factory=list)


def purge(
    store: Store,
    landing: Store,
    target: Target,
    held: Mapping[Delivery, Collection[str]],
    *,
    request: str,
    among: Collection[Delivery],
) -> Purged:
    """Empty every row, member and page of the target in the store and in the landing folder.

    `held` are the deliveries whose shards hold the target's samples, with the keys of those: another delivery of the
    same shard has other samples under them. `among` are all deliveries. A landed shard is rewritten where it is a plain
    tar on a disk and is what was indexed; otherwise it is named among what remains. Manifests and decisions are never
    rewritten: one that holds a text of the target is named too.
    """
    plan = _Plan()
    _plan_store(store, target, held, request, plan)
    for delivery, keys in held.items():
        others = [item for item in among if item.shard == delivery.shard and item.sha256 != delivery.sha256]
        _plan_shard(store, landing, delivery, keys, others, target, plan)
    redaction.record(store, [step.change for step in plan.steps], request=request)
    for step in sorted(plan.steps, key=lambda step: step.change.key.startswith(_INDEXES)):
        step.make()
        log.info("purge: %s, %d rows or members", step.change.key, step.change.rows)
    return Purged(tuple(step.change for step in plan.steps), tuple(dict.fromkeys(plan.remaining)))


def _plan_store(
    store: Store, target: Target, held: Mapping[Delivery, Collection[str]], request: str, plan: _Plan
) -> None:
    refused = {item.quarantine_key: frozenset((item.shard, key) for key in keys) for item, keys in held.items()}
    views: dict[str, Artifact] = {}
    for item in store.list():
        if item.key.endswith(_MANIFEST):
            views |= _views_of(store, item.key)
    for item in store.list():
        name = item.key.rpartition("/")[2].lower()
        if item.key in views:
            continue
        if name.endswith(".parquet"):
            mine = target
            if item.key.startswith(_INDEXES):  # of one delivery: its places are of no other
                mine = replace(target, samples=refused.get(item.key, frozenset()))
            _plan_table(store, item.key, mine, request, plan)
        elif name.endswith(".tar"):
            _plan_tar(store, item.key, target, plan)
        elif name.endswith(_TEXTS) and _holds(store.read(item.key), target):
            plan.remaining.append(f"{store.url}/{item.key} holds a caption or a URL and cannot be rewritten.")
    _plan_views(store, views, target, plan)
    hidden = [path for path in store.root.rglob(".*") if path.is_file()] if isinstance(store, LocalStore) else []
    if hidden:
        plan.remaining.append(
            f"{len(hidden)} unfinished writes lie in {store.url}, {hidden[0]} first: delete them once nothing writes."
        )


def _views_of(store: Store, manifest_key: str) -> dict[str, Artifact]:
    try:
        artifact = artifacts.load(store, manifest_key)
    except (CompalignError, ValueError):
        return {}  # not a manifest that this release can read; its files are looked at by their names
    if artifact is None:
        return {}
    return {artifact.file_key(name): artifact for name in artifact.manifest["files"] if artifact.has_view(name)}


def _plan_views(store: Store, views: Mapping[str, Artifact], target: Target, plan: _Plan) -> None:
    """A page that shows a pair goes, after the pictures beside it: nobody else can tell what is on those."""
    showing: dict[str, bool] = {}
    for key, artifact in views.items():
        if key.lower().endswith(_TEXTS):
            page = _read(store, key)
            showing[artifact.path] = showing.get(artifact.path, False) or (
                page is not None and erase.shows(page, target)
            )
    for key, artifact in sorted(views.items(), key=lambda item: not item[0].lower().endswith(_PICTURES)):
        if not showing.get(artifact.path):
            continue
        page = _read(store, key)
        if page is not None and (key.lower().endswith(_PICTURES) or erase.shows(page, target)):
            change = Change(key, hashlib.sha256(page).hexdigest(), None, 0)
            plan.steps.append(_Step(change, lambda key=key: store.delete(key)))  # type: ignore[misc]


def _plan_table(store: Store, key: str, target: Target, request: str, plan: _Plan) -> None:
    def rewritten() -> tuple[bytes, bytes, int] | None:
        before = store.read(key)
        table = pq.read_table(io.BytesIO(before), use_threads=False)
        found = erase.emptied(table, target, request)
        if found is None:
            return None
        groups = pq.ParquetFile(io.BytesIO(before)).metadata
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "table.parquet")
            parquet.write(found[0], path, row_group_rows=max(1, groups.row_group(0).num_rows))
            return before, path.read_bytes(), found[1]

    try:
        made = rewritten() if _may_hold(store, key, target) else None
    except (OSError, ValueError) as error:
        plan.remaining.append(f"{store.url}/{key} cannot be read as Parquet ({type(error).__name__}): look at it.")
        return
    _plan_untold(store, key, target, plan)
    if made is not None:
        before, after, rows = made
        change = Change(key, hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest(), rows)

        def write() -> None:
            stamp, again = store.stat(key).stamp, rewritten()
            if again is None or hashlib.sha256(again[1]).hexdigest() != change.now:
                raise changed(f"{store.url}/{key}")
            store.replace(key, again[1], stamp=stamp)

        plan.steps.append(_Step(change, write))


def _plan_untold(store: Store, key: str, target: Target, plan: _Plan) -> None:
    """Name a table of refused samples with a text in a row of which nobody can tell whose it is."""
    with seekable(store, key) as stream:
        file = pq.ParquetFile(stream)
        names = [name for name in ("detail", "shard", "key") if name in file.schema_arrow.names]
        if "detail" in names and erase.untold(file.read(columns=names, use_threads=False), target):
            plan.remaining.append(f"{store.url}/{key} holds a caption or a URL in a row without a sample: look at it.")


def _may_hold(store: Store, key: str, target: Target) -> bool:
    """Whether a table has texts and rows of the target: its schema and its ids are read, and no text."""
    with seekable(store, key) as stream:
        file = pq.ParquetFile(stream)
        ids = erase.identifying(file.schema_arrow.names)
        return bool(ids) and erase.touches(file.read(columns=ids, use_threads=False), target)


def _plan_tar(store: Store, key: str, target: Target, plan: _Plan) -> None:
    path, stamp = store.fetch(key), store.stat(key).stamp
    with path.open("rb") as stream:
        places = erase.resharded_blanks(stream, path.stat().st_size, target)
        if not places or erase.is_blank(stream, places):
            return
    was, now = _digests(path, places)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store.replace(key, _blanked(path, Path(folder, "tar"), places), stamp=stamp)

    plan.steps.append(_Step(Change(key, was, now, len(places)), write))


def _plan_shard(
    store: Store,
    landing: Store,
    delivery: Delivery,
    keys: Collection[str],
    others: Sequence[Delivery],
    target: Target,
    plan: _Plan,
) -> None:
    """What of a landed shard goes. Bytes that are one of `others`, its later or earlier deliveries, are let be."""
    index = artifacts.load(store, delivery.index)
    key = index.inputs[0].key if index else f"{landing.url}/{delivery.shard}"
    if not landing.exists(delivery.shard):
        return
    if not isinstance(landing, LocalStore) or not delivery.shard.endswith(".tar"):
        why = "packed" if isinstance(landing, LocalStore) else "in a bucket"
        plan.remaining.append(
            f"{key} is {why} and stays as it is: deliver it again without {len(keys)} samples "
            f"({', '.join(sorted(keys)[:5])}{', ...' if len(keys) > 5 else ''}), or remove it."
        )
        return
    path = landing.path(delivery.shard)
    with path.open("rb") as stream:
        places = erase.landed_blanks(stream, path.stat().st_size, keys, target)
        blank = erase.is_blank(stream, places)
    if blank:
        return
    was, now = _digests(path, places)
    known = redaction.redactions(store).get(key, redaction.Redaction.none(key))
    if not known.comes_of(delivery.sha256, was):
        if any(known.comes_of(other.sha256, was) for other in others):
            return
        plan.remaining.append(f"{key} is not the delivery that was indexed: seal and index it, then run this again.")
        return
    if path.stat().st_nlink > 1:
        plan.remaining.append(f"{key} has {path.stat().st_nlink - 1} more names on this disk, whose bytes stay.")
    change = Change(key, was, now, len(places), "landing")
    plan.steps.append(_Step(change, lambda: _replace_landed(path, places)))


def _replace_landed(path: Path, places: Sequence[tuple[int, int]]) -> None:
    """The shard with zeros in these places, of the same size and time: the batch log knows it by them."""
    facts = path.stat()
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        _blanked(path, part, places)
        shutil.copymode(path, part)
        os.utime(part, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _blanked(path: Path, out: Path, places: Sequence[tuple[int, int]]) -> Path:
    with path.open("rb") as source, out.open("wb") as stream:
        for piece in _pieces(source, places):
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return out


def _digests(path: Path, places: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """SHA-256 of a file as it is, and with zeros in these places."""
    blanked = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in _pieces(stream, places):
            blanked.update(piece)
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest(), blanked.hexdigest()


def _pieces(stream: BinaryIO, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """A file's bytes with zeros in these places, in pieces of bounded size."""
    for offset, length in sorted(places):
        while stream.tell() < offset:
            yield stream.read(min(_CHUNK, offset - stream.tell()))
        end = stream.seek(offset + length)
        for start in range(offset, end, _CHUNK):
            yield bytes(min(_CHUNK, end - start))
    while piece := stream.read(_CHUNK):
        yield piece


def _holds(data: bytes, target: Target) -> bool:
    """Whether a caption or URL stands in a text as it is, or as JSON has it."""
    told = (json.dumps(text, ensure_ascii=False)[1:-1] for text in target.texts if len(text) >= erase.SHORTEST)
    return any(text.encode() in data for text in told)


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except ObjectMissingError:
        return None  # an earlier purge deleted it
