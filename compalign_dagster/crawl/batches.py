"""The batch log: which shards the crawl is made of, as numbered decisions in the store.

A batch is a commit to the crawl: shards added, superseded by a new delivery, removed. The log is the
truth; sensors and partitions are views of it. What does not belong here: reading shards.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from compalign_dagster import decisions
from compalign_dagster.crawl import landed
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.decisions import DecidedMeanwhileError
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.store import Listed, Store

NAME = "batches"
_ATTEMPTS = 20  # two sealers race at most now and then; losing this often means something else is wrong

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardStamp:
    """A delivery of a shard: its name, its size in bytes, and a stamp that changes when it does."""

    shard: str
    size: int
    stamp: str


def stamp_of(item: Listed) -> ShardStamp:
    """The delivery that a listed shard is."""
    return ShardStamp(item.key, item.size, item.stamp)


@dataclass(frozen=True)
class Batch:
    """One entry of the log. `superseded` holds the new stamps of shards that were delivered again."""

    key: str
    added: tuple[ShardStamp, ...]
    superseded: tuple[ShardStamp, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class BatchSize:
    """When a batch is full: so many shards, or about so many pairs. A removal counts as a shard."""

    shards: int = 100
    pairs: int = 1_000_000


Live = dict[str, tuple[str, ShardStamp]]  # shard name -> (key of the batch that brought it, its stamp)
Changes = Mapping[str, ShardStamp | None]  # shard name -> what lies there, None where nothing does


def read_log(store: Store) -> list[Batch]:
    """Every batch, oldest first."""
    return [_batch(decision) for decision in decisions.history(store, NAME)]


def require(store: Store, key: str) -> Batch:
    """The batch of this key.

    Raises:
        InputError: when the log has no such batch.
    """
    for batch in read_log(store):
        if batch.key == key:
            return batch
    raise InputError(
        f"batch {key!r} in {store.url}",
        expected="a sealed batch of the log",
        found="no such batch",
        remedy="Land it first (job `land_batch`), or choose one that the log has.",
    )


def live_shards(batches: Iterable[Batch]) -> Live:
    """The crawl after these batches."""
    live: Live = {}
    for batch in batches:
        for name in batch.removed:
            live.pop(name, None)
        live.update({item.shard: (batch.key, item) for item in (*batch.added, *batch.superseded)})
    return live


def cut(changes: Changes, pairs: Mapping[str, int], size: BatchSize) -> Iterator[tuple[dict, bool]]:
    """Changes of one batch each, in name order, and whether that batch is full; only the last may not be."""
    part: dict[str, ShardStamp | None] = {}
    held = 0
    for name in sorted(changes):
        count = pairs.get(name, 0)
        if part and held + count > size.pairs:
            yield part, True
            part, held = {}, 0
        part[name] = changes[name]
        held += count
        if len(part) >= size.shards or held >= size.pairs:
            yield part, True
            part, held = {}, 0
    if part:
        yield part, False


def append(store: Store, version: int, live: Live, changes: Changes) -> Batch:
    """Add the batch of these changes to a log of `version` entries, after which `live` is the crawl.

    Raises:
        DecidedMeanwhileError: when somebody else has added one. Look at the landing folder again.
    """
    entry: dict[str, list] = {
        "added": [asdict(item) for name, item in changes.items() if item and name not in live],
        "superseded": [asdict(item) for name, item in changes.items() if item and name in live],
        "removed": [name for name, item in changes.items() if item is None],
    }
    batch = _batch(decisions.decide(store, NAME, entry, after=version))
    log.info("sealed %s: %s", batch.key, ", ".join(f"{len(items)} {name}" for name, items in entry.items()))
    return batch


def seal(
    store: Store,
    landing: Store,
    *,
    max_shards: int,
    max_pairs: int = BatchSize.pairs,
    remove_corpora: Collection[str] = (),
) -> list[Batch]:
    """Seal every difference between the landing folder and the log at once, however new.

    A corpus that has live shards and of which nothing lies there is left as it is, unless it is named in
    `remove_corpora`: a lost mount must not read as a mass removal.

    Raises:
        InputError: for such corpora, after everything else is sealed; before, for a corpus in
            `remove_corpora` of which shards lie there still.
    """
    sealed: list[Batch] = []
    for _ in range(_ATTEMPTS):
        before = read_log(store)
        live = live_shards(before)
        changes, pairs, lost = _differences(landing, live, set(remove_corpora))
        try:
            for at, (part, _) in enumerate(cut(changes, pairs, BatchSize(max_shards, max_pairs))):
                sealed.append(append(store, len(before) + at, live, part))
        except DecidedMeanwhileError:
            continue  # somebody else was faster: compare again
        if lost:
            raise landed.lost_corpora(landing, lost)
        return sealed
    raise CompalignError(
        f"batch log in {store.url}",
        expected="to be written within a few attempts",
        found=f"{_ATTEMPTS} lost races",
        remedy="Check what else seals batches there.",
    )


def _differences(landing: Store, live: Live, remove: set[str]) -> tuple[Changes, dict[str, int], set[str]]:
    """What the log does not say, about how many pairs each shard of it holds, and the corpora that are lost."""
    items = {item.key: item for item in landed.shards(landing)}
    there = {corpus_of(name) for name in items}
    if remove & there:
        raise InputError(
            f"remove_corpora {sorted(remove & there)}",
            expected="corpora of which no shard lies in the landing folder",
            found="shards of them",
            remedy=f"Move them out of {landing.url} first, or correct the names.",
        )
    lost = {corpus_of(name) for name in live} - there - remove
    new = [item for name, item in items.items() if name not in live or live[name][1] != stamp_of(item)]
    missing = [name for name in live.keys() - items.keys() if corpus_of(name) not in lost]
    counts = landed.Inspector(landing, landed.Complete(), now=0).pairs(new)
    changes: Changes = {item.key: stamp_of(item) for item in new} | dict.fromkeys(landed.gone(landing, missing))
    return changes, {item.key: count or 0 for item, count in zip(new, counts, strict=True)}, lost


def _batch(decision: decisions.Decision) -> Batch:
    value = decision.value
    return Batch(
        key=f"batch-{decision.version:05d}",
        added=tuple(ShardStamp(**item) for item in value["added"]),
        superseded=tuple(ShardStamp(**item) for item in value["superseded"]),
        removed=tuple(value["removed"]),
    )
