"""What entered and what left between two versions of the dataset, and why each pair did.

Batches whose list and cut are the same in both are passed over; where only the cut moved, the rows between the cuts
are read; else one batch at a time is. What belongs here: changes, their causes, their account. What does not: pages.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from compalign_dagster.parquet import column
from compalign_dagster.selection import caps
from compalign_dagster.selection.causes import CAUSES, COLUMNS, ENTERED, LEFT, SIDES, Why
from compalign_dagster.selection.cut import Rows
from compalign_dagster.selection.ladder import histogram
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.tables import RANKED
from compalign_dagster.selection.version import Version

SAMPLE = 24

CHANGES = pa.schema(
    [
        column("side", pa.string(), "entered | left"),
        column("cause", pa.string(), "why it changed, one of the diff's causes"),
        *(RANKED.field(name) for name in COLUMNS),
        column("before", pa.float32(), "reward in the older version", nullable=True),
        column("after", pa.float32(), "reward in the newer version", nullable=True),
        column("reason", pa.string(), "why the other version does not keep it; null where it lacks it", nullable=True),
    ]
)


@dataclass
class Diff:
    """The account of all changes between two versions."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (side, cause) -> pairs
    corpora: Counter[tuple[str, str]] = field(default_factory=Counter)  # (side, corpus) -> pairs
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIDES, 0.0))  # side -> sum of rewards
    samples: dict[tuple[str, str], pl.DataFrame] = field(default_factory=dict)  # those with the smallest pair ids
    edges: dict[str, list[float]] = field(default_factory=dict)  # side -> edges of equal bins of rewards
    rewards: dict[str, np.ndarray] = field(default_factory=dict)  # side -> pairs in each bin

    def total(self, side: str) -> int:
        """Pairs that entered, or left."""
        return sum(n for (of, _), n in self.counts.items() if of == side)

    def mean(self, side: str) -> float | None:
        """Mean reward of what entered, by the newer version, or of what left, by the older."""
        total = self.total(side)
        return self.sums[side] / total if total else None

    def add(self, frame: pl.DataFrame) -> None:
        """Count a frame of `changes`."""
        for (side, cause), rows in frame.group_by("side", "cause"):
            key = (str(side), str(cause))
            self.counts[key] += rows.height
            self.sums[key[0]] += float(rows["reward"].cast(pl.Float64).sum())
            known = [self.samples[key]] if key in self.samples else []
            self.samples[key] = pl.concat([*known, rows]).sort(TIE_BREAK).head(SAMPLE)
            if edges := self.edges.get(key[0]):
                rewards = rows["reward"].to_numpy().astype(np.float64).clip(edges[0], edges[-1])
                counted = np.histogram(rewards, edges)[0]
                self.rewards[key[0]] = self.rewards.get(key[0], 0) + counted
        for side, corpus, n in frame.group_by("side", "corpus").len().iter_rows():
            self.corpora[side, corpus] += n

    def as_json(self) -> dict[str, Any]:
        """JSON values: counts by cause and by corpus, mean rewards."""
        return {
            side: {
                "pairs": self.total(side),
                "by_cause": {cause: self.counts[side, cause] for cause in CAUSES if self.counts[side, cause]},
                "by_corpus": dict(sorted((corpus, n) for (of, corpus), n in self.corpora.items() if of == side)),
                "mean_reward": self.mean(side),
            }
            for side in SIDES
        }


def account(a: Version, b: Version) -> Diff:
    """An account of changes from `a` to `b` in which nothing is counted yet."""
    return Diff(edges={ENTERED: histogram(b)["edges"], LEFT: histogram(a)["edges"]})


def diff(a: Version, b: Version) -> Diff:
    """The account of what changes from `a` to `b`."""
    found = account(a, b)
    for frame in changes(a, b):
        found.add(frame)
    return found


def pairs(a: Version, b: Version, side: str, cause: str | None, limit: int) -> pl.DataFrame:
    """The `limit` changes of a side, of one cause where one is given, that have the smallest pair ids."""
    found = pl.DataFrame(pl.from_arrow(CHANGES.empty_table()))
    for frame in changes(a, b):
        wanted = frame.filter(pl.col("side") == side, pl.lit(True) if cause is None else pl.col("cause") == cause)
        found = pl.concat([found, wanted.select(found.columns)]).sort(TIE_BREAK).head(limit)
    return found


def changes(a: Version, b: Version) -> Iterator[pl.DataFrame]:
    """Every pair that only one of two versions keeps, a few batches at a time, in no particular order.

    Columns: `side` (entered: `b` keeps it; left: `a` did), `cause` (of CAUSES), COLUMNS of the version that keeps it,
    `before` and `after` (rewards, null where there is none), `reason` (why the other does not keep it, null where it
    does not know the pair).
    """
    why = Why(a, b)
    for batches in _different(a, b):
        frame = _same_list(a, b, batches[0], why) if _is_same_list(a, b, batches) else _other_lists(a, b, batches, why)
        changed = frame.filter(pl.col("kept_a") != pl.col("kept_b"))
        if changed.height:
            yield why.explain(changed)


def rows_read(a: Version, b: Version) -> int:
    """How many rows of ranked lists a diff of two versions reads; none is read to tell.

    Other caps of the older one are worked out on all that the newer one decided on.
    """
    older = caps.limits(a.policy)
    found = int(b.facts["pairs"]) if any(older) and older != caps.limits(b.policy) else 0
    for batches in _different(a, b):
        mine, theirs = (version.lists.filter(pl.col("batch").is_in(batches)) for version in (a, b))
        if _is_same_list(a, b, batches):
            both = mine.join(theirs, on="corpus", suffix="_b")
            found += both.select((pl.col("taken") - pl.col("taken_b")).abs().sum()).item()
            found += sum(version.capped.filter(batch=batches[0]).height for version in (a, b))
        else:
            found += sum(part.select(pl.col("rows").sum()).item() for part in (mine, theirs))
    return found


def _different(a: Version, b: Version) -> Iterator[list[str]]:
    """Batches in which the versions may differ; those that a shard has moved between come together."""
    mine, theirs = _signatures(a), _signatures(b)
    changed = {batch for batch in {*mine, *theirs} if mine.get(batch) != theirs.get(batch)}
    moved = a.shards.select("shard", "batch").join(b.shards.select("shard", "batch"), on="shard", suffix="_b")
    together = {batch: {batch} for batch in changed}
    for one, other in moved.filter(pl.col("batch") != pl.col("batch_b")).select("batch", "batch_b").iter_rows():
        joined = together.get(one, {one}) | together.get(other, {other})
        together |= dict.fromkeys(joined, joined)
    seen: set[str] = set()
    for batch in sorted(together):
        if batch not in seen:
            seen |= together[batch]
            yield sorted(together[batch])


def _signatures(version: Version) -> dict[str, Any]:
    """What decides about a batch's pairs, by batch."""
    capped = {str(batch): rows["row"].to_list() for (batch,), rows in version.capped.group_by("batch")}
    parts = version.lists.sort("start").partition_by("batch", as_dict=True)
    return {
        str(batch): (rows.select("corpus", "list_version", "start", "taken").rows(), capped.get(str(batch), []))
        for (batch,), rows in parts.items()
    }


def _is_same_list(a: Version, b: Version, batches: list[str]) -> bool:
    versions = [set(version.lists.filter(batch=batches[0])["list_version"]) for version in (a, b)]
    return len(batches) == 1 and bool(versions[0]) and versions[0] == versions[1]


def _same_list(a: Version, b: Version, batch: str, why: "Why") -> pl.DataFrame:
    """The rows between the two cuts and those that a cap takes away, with both decisions."""
    parts = a.lists.filter(batch=batch).join(b.lists.filter(batch=batch), on="corpus", suffix="_b")
    places = [np.union1d(a.capped.filter(batch=batch)["row"], b.capped.filter(batch=batch)["row"]).astype(np.int64)]
    for part in parts.iter_rows(named=True):
        low, high = sorted((part["taken"], part["taken_b"]))
        places.append(np.arange(part["start"] + low, part["start"] + high, dtype=np.int64))
    with closing(Rows(b.ranked_list(batch), [*COLUMNS, "reason"])) as rows:
        frame = rows.at(np.unique(np.concatenate(places)))
    decided = b.with_decision(batch, frame)
    old = a.with_decision(batch, frame).select("row", reason_a="reason")
    marked = decided.join(old, on="row").join(why.as_before(batch, frame), on="row", how="left")
    return marked.select(
        *COLUMNS,
        *(pl.col(name).alias(f"{name}_a") for name in ("reward", "image_offset", "image_length", "corpus")),
        "reason_a",
        "as_before",
        reason_b="reason",
        kept_a=pl.col("reason_a").is_null(),
        kept_b=pl.col("reason").is_null(),
        in_a=pl.lit(True),
        in_b=pl.lit(True),
    )


def _other_lists(a: Version, b: Version, batches: list[str], why: "Why") -> pl.DataFrame:
    """Every pair of the batches that either version knows, with both decisions."""
    old = _whole(a, batches, lambda batch, frame: frame).drop("row")
    new = _whole(b, batches, lambda batch, frame: frame.join(why.as_before(batch, frame), on="row", how="left"))
    if "as_before" not in new.columns:
        new = new.with_columns(as_before=pl.lit(None, pl.Boolean))
    both = old.with_columns(in_a=pl.lit(True)).join(
        new.drop("row").with_columns(in_b=pl.lit(True)), on=TIE_BREAK, how="full", coalesce=True, suffix="_new"
    )
    known = [pl.col(name).fill_null(False) for name in ("in_a", "in_b")]
    return both.with_columns(*known).select(
        *TIE_BREAK,
        *(pl.col(f"{name}_new").alias(name) for name in COLUMNS if name not in TIE_BREAK),
        *(pl.col(name).alias(f"{name}_a") for name in COLUMNS if name not in TIE_BREAK),
        "as_before",
        "in_a",
        "in_b",
        reason_a="reason",
        reason_b="reason_new",
        kept_a=pl.col("in_a") & pl.col("reason").is_null(),
        kept_b=pl.col("in_b") & pl.col("reason_new").is_null(),
    )


def _whole(version: Version, batches: list[str], add: Any) -> pl.DataFrame:
    known = [batch for batch in version.batches() if batch in batches]
    if known:
        return pl.concat([add(batch, version.decided(batch, COLUMNS)) for batch in known])
    return _NOTHING


_NOTHING = pl.DataFrame(
    schema={
        "row": pl.Int64, **dict.fromkeys(TIE_BREAK, pl.String), "caption_index": pl.Int32, "corpus": pl.String,
        "reward": pl.Float32, "image_offset": pl.Int64, "image_length": pl.Int64, "reason": pl.String,
    }
)  # fmt: skip


def shards_changed(a: Version, b: Version) -> Mapping[str, int]:
    """How many shards came, went and were replaced between two versions."""
    names = ["shard", "index_version"]
    both = a.shards.select(names).join(b.shards.select(names), on="shard", how="full", coalesce=True, suffix="_b")
    old, new = pl.col("index_version"), pl.col("index_version_b")
    return {
        "new": both.filter(old.is_null()).height,
        "removed": both.filter(new.is_null()).height,
        "replaced": both.filter(old != new).height,
    }
