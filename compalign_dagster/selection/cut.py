"""Where a budget's cut falls among ranked lists, exactly, reading little more than the rows around it.

Histograms give the range of every list in which the cut must lie; only those rows are read and merged. Where
even they are too many to hold (ties without end), ranges are halved first by the rows in their middle.
What belongs here: one budget over segments of lists. What does not: making lists, policies, artifacts.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.artifacts import Artifact
from compalign_dagster.selection.counts import BIN_BITS
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.store import seekable

_IN_MEMORY_ROWS = 1_000_000
_KEY = ["reward", *TIE_BREAK]

Key = tuple[float, str, str, str, int]
"""(-reward, pair_id, shard, key, caption_index): smaller is better; strings compare as their UTF-8 bytes."""


@dataclass(frozen=True)
class Segment:
    """The candidates of one corpus in one list, best first."""

    artifact: Artifact  # of kind ranked_pairs
    start: int  # first row
    eligible: int  # rows
    bins: np.ndarray  # uint32, falling
    counts: np.ndarray  # int64, candidates of each bin, capped ones among them
    capped: np.ndarray  # int64, rows that a cap takes away, rising; positions in the list


@dataclass(frozen=True)
class Cut:
    """What a budget keeps: `kept` candidates in all, the leading `taken[i]` rows of each segment."""

    kept: int
    taken: list[int]  # from the segment's start, capped rows among them
    last: Key | None  # of the last kept candidate
    first_dropped: float | None  # highest reward of a dropped candidate
    tied: int  # dropped candidates with the reward of the last kept one


def find_cut(segments: Sequence[Segment], k: int, *, in_memory_rows: int = _IN_MEMORY_ROWS) -> Cut:
    """The cut that keeps the `k` best of the segments' candidates, or all of them where there are fewer."""
    total = sum(segment.eligible - len(segment.capped) for segment in segments)
    kept = min(k, total)
    if kept == 0:
        ends = [segment.start for segment in segments]
        return Cut(0, [0] * len(segments), None, _best_of(segments, ends), 0)
    ranges, need = _ranges(segments, kept)
    whole = [list(each) for each in ranges]
    need = _narrow(segments, ranges, need, in_memory_rows)
    ties, reward, below, need = _ties(segments, ranges, need)
    rows = _read(segments, ties)
    at = int(rows["capped"].not_().arg_true()[need - 1])
    counts = dict(rows.head(at + 1).group_by("segment").len().iter_rows())
    taken = [low - segments[i].start + counts.get(i, 0) for i, (low, _) in enumerate(ties)]
    tied = int(rows.slice(at + 1)["capped"].not_().sum())
    ends = [high for _, high in ranges]
    if below is None and ranges != whole:  # rows behind what was left of the ranges may be tied
        tied += sum(_tied(segment, end, reward) for segment, end in zip(segments, ends, strict=True))
    first = reward if tied else below if below is not None else _best_of(segments, ends)
    return Cut(kept, taken, (-reward, *rows.row(at)[3:]), first, tied)


class Rows:
    """The rows of a ranked list, by position; a context manager."""

    def __init__(self, artifact: Artifact, columns: Sequence[str]) -> None:
        self._stream = seekable(artifact.store, artifact.file_key("ranked.parquet"))
        self._file = pq.ParquetFile(self._stream)
        self._columns = list(columns)
        sizes = [self._file.metadata.row_group(at).num_rows for at in range(self._file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def slice(self, low: int, high: int) -> pl.DataFrame:
        """Rows from `low` to before `high`, with their position in column `row`."""
        frame = pl.DataFrame(pl.from_arrow(self._table(low, high)))
        row = pl.int_range(low, low + frame.height, dtype=pl.Int64, eager=True).alias("row")
        return frame.with_columns(row)

    def at(self, places: np.ndarray) -> pl.DataFrame:
        """The rows at rising positions, as `slice` gives them, read a row group at a time."""
        groups = np.searchsorted(self._ends, places, side="right")
        runs = np.split(places, np.flatnonzero(np.diff(groups)) + 1) if len(places) else []
        read = [self.slice(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        return pl.concat([self.slice(0, 0), *read])

    def rewards(self, low: int, high: int) -> np.ndarray:
        """The rewards from row `low` to before `high`, float32 [high - low]."""
        return self._table(low, high)["reward"].to_numpy()

    def _table(self, low: int, high: int) -> pa.Table:
        first = int(np.searchsorted(self._ends, low, side="right"))
        last = int(np.searchsorted(self._ends, max(high - 1, low), side="right"))
        groups = list(range(first, min(last + 1, len(self._ends)))) if high > low else []
        table = self._file.read_row_groups(groups, columns=self._columns, use_threads=False)
        offset = int(self._ends[first - 1]) if first else 0
        return table.slice(max(low - offset, 0), max(high - low, 0))

    def close(self) -> None:
        self._file.close()
        self._stream.close()


def _ranges(segments: Sequence[Segment], kept: int) -> tuple[list[list[int]], int]:
    """Per segment the rows [low, high) in which the cut lies, and how many of all of them are kept."""
    counts = np.zeros(1 << BIN_BITS, np.int64)
    for segment in segments:
        net = segment.counts - _capped_per_bin(segment) if len(segment.capped) else segment.counts
        counts[segment.bins] += net  # each of its bins is there once
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, kept))
    boundary, above = len(counts) - 1 - place, int(reached[place] - counts[::-1][place])
    ranges = []
    for segment in segments:
        rising = segment.bins[::-1]
        first, last = (len(rising) - int(np.searchsorted(rising, boundary, side)) for side in ("right", "left"))
        low = segment.start + int(segment.counts[:first].sum())
        ranges.append([low, low + int(segment.counts[first:last].sum())])
    return ranges, kept - above


def _capped_per_bin(segment: Segment) -> np.ndarray:
    ends = segment.start + np.cumsum(segment.counts, dtype=np.int64)
    return np.bincount(np.searchsorted(ends, segment.capped, side="right"), minlength=len(segment.counts))


def _ties(
    segments: Sequence[Segment], ranges: Sequence[Sequence[int]], need: int
) -> tuple[list[list[int]], float, float | None, int]:
    """Of the ranges the rows with the last kept candidate's reward; no other column is read.

    Beside them that reward, the highest lower one of a candidate in the ranges, and how many of the rows'
    candidates are kept.
    """
    rewards, candidates = [], []
    for segment, (low, high) in zip(segments, ranges, strict=True):
        found = np.empty(0, np.float32)
        if low < high:
            with closing(Rows(segment.artifact, ["reward"])) as rows:
                found = rows.rewards(low, high)
        rewards.append(found)
        capped = segment.capped[slice(*np.searchsorted(segment.capped, [low, high]))]
        candidates.append(np.delete(found, capped - low) if len(capped) else found)
    pooled = np.concatenate(candidates)
    last = float(np.partition(pooled, len(pooled) - need)[len(pooled) - need])
    below = pooled[pooled < last]
    ties = [
        [low + int((found > last).sum()), low + int((found >= last).sum())]
        for found, (low, _) in zip(rewards, ranges, strict=True)
    ]
    return ties, last, float(below.max()) if len(below) else None, need - int((pooled > last).sum())


def _narrow(segments: Sequence[Segment], ranges: list[list[int]], need: int, limit: int) -> int:
    """Halve the ranges until they fit into memory; how many of their rows are kept then."""
    while sum(high - low for low, high in ranges) > limit:
        widest = max(range(len(ranges)), key=lambda at: ranges[at][1] - ranges[at][0])
        low, high = ranges[widest]
        if high - low < 2:
            break  # as many segments as rows
        pivot = _key_at(segments[widest], (low + high - 1) // 2)
        ends = [_end_of(segment, low, high, pivot) for segment, (low, high) in zip(segments, ranges, strict=True)]
        inside = sum(
            _candidates(segment, low, end) for segment, (low, _), end in zip(segments, ranges, ends, strict=True)
        )
        for at, end in enumerate(ends):
            ranges[at][0 if inside < need else 1] = end
        need -= inside if inside < need else 0
    return need


def _candidates(segment: Segment, low: int, high: int) -> int:
    """Rows of [low, high) that no cap takes away."""
    first, last = np.searchsorted(segment.capped, [low, high])
    return high - low - int(last - first)


def _end_of(segment: Segment, low: int, high: int, pivot: Key) -> int:
    """The first row of [low, high) that ranks behind `pivot`, or `high`."""
    if low == high:
        return high
    with closing(Rows(segment.artifact, _KEY)) as rows:
        while low < high:
            middle = (low + high) // 2
            found = _key(rows.slice(middle, middle + 1))
            low, high = (middle + 1, high) if found <= pivot else (low, middle)
    return low


def _key_at(segment: Segment, row: int) -> Key:
    with closing(Rows(segment.artifact, _KEY)) as rows:
        return _key(rows.slice(row, row + 1))


def _key(frame: pl.DataFrame) -> Key:
    reward, *rest = frame.select(_KEY).row(0)
    return (-reward, *rest)


def _read(segments: Sequence[Segment], ranges: Sequence[Sequence[int]]) -> pl.DataFrame:
    """The rows of the ranges, best first: `segment`, `capped` and the key's columns."""
    found = []
    for at, (segment, (low, high)) in enumerate(zip(segments, ranges, strict=True)):
        if low == high:
            continue
        with closing(Rows(segment.artifact, _KEY)) as rows:
            frame = rows.slice(low, high)
        capped = pl.Series(np.isin(frame["row"].to_numpy(), segment.capped, assume_unique=True))
        found.append(frame.select(pl.lit(at, pl.Int64).alias("segment"), capped.alias("capped"), *_KEY))
    return pl.concat(found).sort(_KEY, descending=[True, *[False] * len(TIE_BREAK)])


def _tied(segment: Segment, low: int, reward: float) -> int:
    """Candidates from row `low` on that have this reward; no row from there on has a higher one."""
    end = segment.start + segment.eligible
    if low == end or _key_at(segment, low)[0] != -reward:
        return 0
    with closing(Rows(segment.artifact, _KEY)) as rows:
        first, last = low + 1, end  # the first row with a lower reward lies here, or it is `end`
        while first < last:
            middle = (first + last) // 2
            found = _key(rows.slice(middle, middle + 1))[0]
            first, last = (middle + 1, last) if found == -reward else (first, middle)
    return _candidates(segment, low, first)


def _best_of(segments: Sequence[Segment], ends: Sequence[int]) -> float | None:
    """The highest reward of a candidate behind these rows."""
    found = []
    for segment, row in zip(segments, ends, strict=True):
        end = segment.start + segment.eligible
        capped = set(segment.capped.tolist())
        row = next((at for at in range(row, end) if at not in capped), end)
        if row < end:
            found.append(-_key_at(segment, row)[0])
    return max(found, default=None)
