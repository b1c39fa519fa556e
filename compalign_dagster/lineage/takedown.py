"""Takedown: a request is recorded, its pairs are blocked from the next version on, and purged where asked.

What belongs here: requests and what becomes of them. What does not: the block list (`selection/blocks.py`), the files
that a purge rewrites (`purge.py`).

The record comes first. A run that was killed behind it is made good by the next: the block list always gets every
request on record that was not withdrawn.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from compalign_dagster import decisions, latest
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import impact, models, places, redaction
from compalign_dagster.lineage.erase import Target
from compalign_dagster.lineage.places import OCCURRENCE, Delivery
from compalign_dagster.lineage.purge import Purged, purge
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocks, reasons
from compalign_dagster.selection.blocks import Entry, entry
from compalign_dagster.selection.version import frame_of
from compalign_dagster.store import Store

DECISION = redaction.TAKEDOWNS
_MOST_ROWS = 1_000_000
_MOST_BYTES = 256 << 20
_FIELDS = {"kind", "value", "request", "reason", "distance"}


def read_request(path: Path) -> list[Entry]:
    """The entries of a CSV file (with a header) or a JSONL file: kind, value, request, reason, distance.

    `request` is the file's name and `reason` is takedown where they are left out; `distance` is for image_near.

    Raises:
        InputError: with the line, for anything that is no request.
    """
    found: set[Entry] = set()
    for line, row in _rows(path):
        try:
            found.add(_entry(row, path.stem))
        except InputError as error:
            raise InputError(
                f"{path}, line {line}: {error.what}", expected=error.expected, found=error.found, remedy=error.remedy
            ) from None
    if not found:
        raise InputError(f"{path}", expected="at least one entry", found="none", remedy="Write kind,value below.")
    return sorted(found)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path}", expected=f"at most {_MOST_BYTES} bytes", found=str(size), remedy="Split it.")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = _json_lines(stream) if path.suffix in (".jsonl", ".json") else _csv_lines(stream)
            for count, (line, row) in enumerate(lines):
                if count >= _MOST_ROWS or not isinstance(row, dict) or not {"kind", "value"} <= set(row) <= _FIELDS:
                    raise _unusable(path, line, f"at most {_MOST_ROWS} rows of {', '.join(sorted(_FIELDS))}", row)
                yield line, row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(
            f"{path}", expected="CSV with a header, or JSONL, in UTF-8", found=str(error)[:200], remedy="Correct it."
        ) from None


def _json_lines(stream: Any) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(stream, start=1):
        if text.strip():
            yield line, json.loads(text)


def _csv_lines(stream: Any) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(stream, strict=True)
    for row in reader:
        yield reader.line_num, {str(name): value for name, value in row.items() if value not in (None, "")}


def _unusable(path: Path, line: int, expected: str, row: Any) -> InputError:
    found = ", ".join(map(repr, row))[:100] if isinstance(row, dict) else type(row).__name__
    return InputError(f"{path}, line {line}", expected=expected, found=found or "nothing", remedy="Correct this line.")


def _entry(row: dict[str, Any], name: str) -> Entry:
    distance = row.get("distance")
    try:
        near = None if distance is None else int(str(distance))
    except ValueError:
        raise InputError(
            "distance", expected="a whole number", found=repr(distance)[:40], remedy="Correct this line."
        ) from None
    return entry(
        str(row["kind"]),
        str(row["value"]),
        request=str(row.get("request") or name),
        reason=str(row.get("reason") or reasons.TAKEDOWN),
        distance=near,
    )


def history(store: Store) -> list[decisions.Decision]:
    """Every request, withdrawal and purge on record, oldest first."""
    return decisions.history(store, DECISION)


def on_record(store: Store) -> set[Entry]:
    """The entries of every request that was not withdrawn since, and of every purge: that cannot be withdrawn."""
    return redaction.in_force(history(store))


def purged(store: Store) -> set[Entry]:
    """The images that were ever ordered to be destroyed."""
    return redaction.in_force(fact for fact in history(store) if fact.value.get("action") == "purge")


def enforce(store: Store) -> None:
    """Bring the block list up to the record: whoever died between the two has left it behind."""
    if wanted := on_record(store):
        blocks.add(store, wanted)


def request(store: Store, entries: Sequence[Entry], reason: Reason) -> dict[str, Any]:
    """Record a request and block its pairs from the next version on; what it touches, as `impact.of_pairs`.

    The same request again changes nothing.
    """
    if not set(entries) <= on_record(store):
        _record(store, {"action": "request", "entries": [asdict(item) for item in entries]}, reason)
    listed = blocks.add(store, on_record(store))
    found = places.reached(store, entries, places.deliveries(store))
    return {
        "requests": sorted({item.request for item in entries}),
        "entries": len(entries),
        "block_list": listed.manifest_key,
        **impact.of_pairs(store, found),
    }


def withdraw(store: Store, name: str, reason: Reason) -> None:
    """Take a request back: its pairs may be kept again. What was purged does not come back and stays blocked.

    A run that died behind the record is made good by the next.

    Raises:
        InputError: when no request of this name is on record or in the block list.
    """
    destroyed = purged(store)
    listed = {Entry(**row) for row in blocks.entries(blocks.in_force(store)).to_pylist()}
    asked, blocked = ({item.request for item in found - destroyed} for found in (on_record(store), listed))
    if name not in asked | blocked:
        raise InputError(
            f"request {name!r}", expected="one that is on record", found="none",
            remedy="`compalign takedown --list` shows the requests.",
        )  # fmt: skip
    if name in asked or all(fact.value.get("withdraws") != name for fact in history(store)):
        _record(store, {"action": "withdraw", "withdraws": name}, reason)
    if name in blocked:
        blocks.withdraw(store, name, but=destroyed)


def doomed(store: Store, entries: Sequence[Entry]) -> pl.DataFrame:
    """The occurrences that a purge of these entries would destroy, as `places.reached` gives them.

    A purge takes whole images, with every caption and URL that any delivery has of them. Overlap with an evaluation
    set blocks a pair and destroys nothing. Images that an earlier purge of these requests was to destroy are among
    them: the indexes that it has emptied do not tell their URLs any more.
    """
    among = places.deliveries(store)
    mine = [item for item in entries if item.reason == reasons.TAKEDOWN]
    begun = {item for item in purged(store) if item.request in {one.request for one in mine}}
    return places.reached(store, {*_images(places.reached(store, mine, among)), *begun}, among)


def destroy(
    store: Store, landing: Store, entries: Sequence[Entry], reason: Reason, *, found: pl.DataFrame | None = None
) -> tuple[Purged, Target]:
    """Purge what `doomed` names (`found`), after blocking its images, so that a second delivery is stopped as well.

    Returns what was done, and the target, for whoever looks for traces outside the store.
    """
    found = doomed(store, entries) if found is None else found
    images = _images(found)
    if not set(images) <= purged(store):
        _record(store, {"action": "purge", "entries": [asdict(item) for item in images]}, reason)
    enforce(store)
    among = places.deliveries(store)
    keys = {str(key): set(rows["key"]) for (key,), rows in found.partition_by("pairs_key", as_dict=True).items()}
    held = {item: keys[item.pairs_key] for item in among if item.pairs_key in keys}
    target = _target(store, found, list(held))
    name = ", ".join(sorted({item.request for item in images}))
    done = purge(store, landing, target, held, request=name, among=among)
    told = Purged(done.changes, (*done.remaining, *_judged(store, target)))
    _record(store, {"action": "purged", "files": len(told.changes), "remaining": list(told.remaining)}, reason)
    return told, target


def _record(store: Store, value: dict[str, Any], reason: Reason) -> None:
    decisions.move(store, DECISION, lambda _: {**value, "by": reason.by, "why": reason.why})


def _images(found: pl.DataFrame) -> list[Entry]:
    rows = found.select("image_sha256", "request").unique().sort("image_sha256", "request").iter_rows()
    return [entry("image_sha256", image, request=name) for image, name in rows]


def _target(store: Store, found: pl.DataFrame, held: Sequence[Delivery]) -> Target:
    rows = [
        places.index_of(store, item, [*OCCURRENCE, "caption", "url", "image_length"]).join(
            found.filter(pairs_key=item.pairs_key).select(OCCURRENCE), on=OCCURRENCE, how="semi"
        )
        for item in held
    ]
    texts = {text for frame in rows for name in ("caption", "url") for text in frame[name].to_list() if text}
    return Target(
        samples=frozenset(found.select("shard", "key").iter_rows()),
        pair_ids=frozenset(found["pair_id"]),
        images=frozenset(found["image_sha256"]),
        lengths=frozenset(length for frame in rows for length in frame["image_length"]),
        texts=frozenset(texts),
    )


def _judged(store: Store, target: Target) -> Iterator[str]:
    """Where else an image is known to lie, and which models have learned from it."""
    for item in latest.history(store, models.ANNOTATIONS):
        judged = frame_of(item, "images.parquet").filter(pl.col("image_id").is_in(sorted(target.images)))
        for shard, key in judged.select("shard", "key").sort("shard", "key").iter_rows():
            yield f"The label exports hold one of the images as sample {key} of {shard}: remove it from them."
    for model in models.models(store):
        for because in models.trained_on(model, sorted(target.images), []):
            version = model.facts["model_version"][:12]
            yield f"Reward model {version} was trained on them ({because}): it does not forget; train another one."
