"""How the pairs of a version lie along the reward: its histogram, and places to jump to in a long list.

What belongs here: counts by reward, from the lists' histograms. What does not: the pairs (`views.py`). A ladder leaves
no pair out: what lies behind its last place is reached from it page by page.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from compalign_dagster.selection import reasons
from compalign_dagster.selection.counts import BIN_BITS, bins
from compalign_dagster.selection.place import Key
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.views import Part

_HEX = 2  # digits of their id by which pairs without a reward are divided
_DIVIDED = 16**_HEX
_LEAST = np.uint32((1 << 32 - BIN_BITS) - 1)


@dataclass(frozen=True)
class Step:
    """A stretch of a list: about `pairs` pairs behind `after`, up to `until` (None: to the end)."""

    after: Key
    until: Key | None
    pairs: int


def steps(
    version: Version, group: str, after: Key | None = None, until: Key | None = None, most: int = 100
) -> list[Step]:
    """At most `most` stretches of the group's pairs from best to worst, between two places.

    Pairs without a reward follow, many of them in 256 stretches by their id. Counts leave caps out of account.
    """
    counts: dict[int, int] = {}
    unrewarded = 0
    for part in version.lists.iter_rows(named=True):
        for found, pairs in _counted(Part(version, part), group):
            if found is None:
                unrewarded += pairs
            else:
                counts[found] = counts.get(found, 0) + pairs
    inside = {at: pairs for at, pairs in counts.items() if _within(highest(at), after, until)}
    ladder = _by_reward(inside, after, until if until is not None and until[0] is not None else None, most)
    if unrewarded and (until is None or until[0] is None):
        ladder += _by_id(unrewarded, after, until)
    return ladder


def histogram(version: Version, count: int = 60) -> dict[str, list]:
    """Candidates by reward in `count` equal bins: `edges` [count + 1], `kept` and `dropped` [count], whole numbers.

    Every candidate is counted; at the edge of a bin it may fall into the one beside it, 1/2000 of its reward off.
    """
    kept, others = Counter[int](), Counter[int]()
    for row in version.lists.iter_rows(named=True):
        part = Part(version, row)
        kept.update(dict(_stretch(part, 0, row["taken"])))
        others.update(dict(_stretch(part, row["taken"], row["eligible"])))
        capped = part.capped().filter(pl.col("row") < row["start"] + row["taken"])["reward"].to_numpy()
        moved = Counter({at: pairs for at, pairs in _unique(bins(capped))})
        kept.subtract(moved)
        others.update(moved)
    places = sorted({*kept, *others})
    if not places:
        return {"edges": [], "kept": [], "dropped": []}
    rewards = np.array([highest(at) for at in places])
    edges = np.histogram_bin_edges(rewards, count)
    counted = {
        name: np.histogram(rewards, edges, weights=np.array([found[at] for at in places], np.float64))[0]
        for name, found in (("kept", kept), ("dropped", others))
    }
    return {"edges": edges.tolist(), **{name: [int(pairs) for pairs in found] for name, found in counted.items()}}


def highest(at: int) -> float:
    """The highest float32 that falls into a bin."""
    ordered = (np.uint32(at) << np.uint32(32 - BIN_BITS)) | _LEAST
    bits = ordered ^ np.uint32(1 << 31) if ordered >> np.uint32(31) else ~ordered
    return float(np.array(bits, np.uint32).view(np.float32))


def _within(reward: float, after: Key | None, until: Key | None) -> bool:
    low = until[0] if until is not None and until[0] is not None else -np.inf
    high = np.inf if after is None else -np.inf if after[0] is None else after[0]
    return bool(low < reward <= high)


def _by_reward(counts: dict[int, int], after: Key | None, until: Key | None, most: int) -> list[Step]:
    found: list[tuple[Key | None, Key | None, int]] = []
    total, waiting, start = sum(counts.values()), 0, after
    for at in sorted(counts, reverse=True):
        if waiting and waiting + counts[at] > max(1, total // most):
            place: Key = (highest(at), "", "", "", -1)
            found.append((start, place, waiting))
            start, waiting = place, 0
        waiting += counts[at]
    if waiting:
        found.append((start, until, waiting))
    top: Key = (float(np.finfo(np.float32).max), "", "", "", -1)
    return [Step(begin or top, end, pairs) for begin, end, pairs in found]


def _by_id(pairs: int, after: Key | None, until: Key | None) -> list[Step]:
    start: Key = after if after is not None and after[0] is None else (None, "", "", "", -1)
    prefix = start[1] if len(start[1]) < 3 * _HEX else ""
    inside = pairs // _DIVIDED ** (len(prefix) // _HEX)  # ids are digests: they lie evenly
    if inside <= _DIVIDED:
        return [Step(start, until, inside)]
    places: list[Key] = [(None, f"{prefix}{digits:0{_HEX}x}", "", "", -1) for digits in range(_DIVIDED)]
    return [Step(place, end, inside // _DIVIDED) for place, end in zip(places, [*places[1:], until], strict=True)]


def _counted(part: Part, group: str) -> Iterator[tuple[int | None, int]]:
    """(bin, pairs) of the group's rows in a part; None for those without a reward."""
    if group in reasons.OF_ROW:
        _, rewards = part.members(group)
        known = rewards[~np.isnan(rewards)] if rewards is not None else np.zeros(0)
        yield from _unique(bins(known))
        yield None, 0 if rewards is None else len(rewards) - len(known)
        return
    if group in reasons.OF_CAP:
        yield from _unique(bins(part.capped(group)["reward"].to_numpy()))
        return
    low, high = part.stretch(group)
    yield from _stretch(part, low - part.row["start"], high - part.row["start"])


def _stretch(part: Part, low: int, high: int) -> Iterator[tuple[int, int]]:
    """(bin, pairs) of a part's candidates from place `low` to before `high`, capped ones among them."""
    key = part.artifact.file_key("histogram.parquet")
    table = pl.read_parquet(io.BytesIO(part.artifact.store.read(key)), columns=["corpus", "bin", "pairs"])
    table = table.filter(corpus=part.row["corpus"]).sort("bin", descending=True)
    ends = table["pairs"].cum_sum().to_numpy()
    inside = np.clip(ends, low, high) - np.clip(ends - table["pairs"].to_numpy(), low, high)
    yield from ((int(at), int(pairs)) for at, pairs in zip(table["bin"].to_numpy(), inside, strict=True) if pairs)


def _unique(found: np.ndarray) -> Iterator[tuple[int, int]]:
    for at, pairs in zip(*np.unique(found, return_counts=True), strict=True):
        yield int(at), int(pairs)
