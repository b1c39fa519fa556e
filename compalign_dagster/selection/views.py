"""What a person looks at in a version: some pairs of one group, in one order, and how anybody gets the same ones.

A group is `kept` or a reason. Rows are read by range from the ranked lists, a few row groups of each. What belongs
here: which pairs a view holds, its SQL and its command. What does not: pictures and pages (`pages/`).
"""

import random
import shlex
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from compalign_dagster.errors import InputError
from compalign_dagster.selection import reasons
from compalign_dagster.selection.cut import Rows
from compalign_dagster.selection.place import Key, key_text
from compalign_dagster.selection.ranked import ROW_GROUP_ROWS
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.version import Version

KEPT = "kept"
GROUPS = (KEPT, *reasons.ORDER)
BEST, WORST, NEAREST, RANDOM = "best", "worst", "nearest", "random"
ORDERS = (BEST, WORST, NEAREST, RANDOM)
_READ = [*TIE_BREAK, "corpus", "reward", "image_offset", "image_length"]
_THREADS = 8
_LISTED = (*reasons.OF_ROW, *reasons.OF_CAP)  # groups whose rows are no stretch of a list
_LAST = "\U0010ffff"


@dataclass(frozen=True)
class View:
    """At most `limit` pairs of a group.

    `best` and `worst` go by reward, `nearest` by its distance to the cut of the pair's budget, `random` is drawn with
    `seed`. `after` starts behind a place of the order `best`.
    """

    group: str
    order: str = BEST
    limit: int = 24
    seed: int = 7
    after: Key | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("group", self.group, GROUPS), ("order", self.order, ORDERS)):
            if value not in known:
                raise InputError(f"{what} of pairs", expected=" | ".join(known), found=repr(value), remedy="Name one.")
        if self.after is not None and self.order != BEST:
            raise InputError(
                "a place to start behind", expected=f"the order {BEST}", found=self.order, remedy="Leave it out."
            )

    def command(self, dataset: str) -> str:
        """The command line that prints the view's pairs."""
        words = ["compalign", "browse", "--dataset", dataset, "--reason", self.group, "--order", self.order]
        words += ["--limit", str(self.limit)]
        words += ["--seed", str(self.seed)] if self.order == RANDOM else []
        words += ["--after", key_text(self.after)] if self.after is not None else []
        return shlex.join(words)


def size(version: Version, group: str) -> int:
    """How many pairs a group has."""
    facts = version.facts
    return int(facts["kept"] if group == KEPT else facts["dropped_by_reason"].get(group, 0))


def rows(version: Version, view: View) -> pl.DataFrame:
    """The view's pairs in its order: `batch, row`, the tie-break's columns, corpus, reward, reason, image place."""
    listed = version.lists.sort("batch", "start") if view.limit else version.lists.clear()
    parts = [Part(version, row) for row in listed.iter_rows(named=True)]
    with ThreadPoolExecutor(_THREADS) as pool:  # what a bucket's answers take is hidden
        if view.order == RANDOM:
            counts = list(pool.map(lambda part: part.count(view.group), parts))
            chosen = _drawn_of(counts, _drawn(version, view))
            found = list(pool.map(lambda part, inside: part.read(part.drawn(view.group, inside)), parts, chosen))
        else:
            found = list(pool.map(lambda part: part.read(_candidates(part, view)), parts))
    frame = pl.concat([pl.DataFrame(schema=_SCHEMA), *found])
    frame = frame.with_columns(reason=pl.lit(None if view.group == KEPT else view.group, pl.String))
    return _sorted(frame, view).head(view.limit).drop("cut")


def sql(version: Version, view: View, *, decided: str = "decided", cuts: str = "cuts") -> str:
    """The same pairs in SQL, over the views that `compalign audit-db` builds."""
    names = ", ".join(TIE_BREAK)
    group = "reason is null" if view.group == KEPT else f"reason = {_quoted(view.group)}"
    limit = f"limit {view.limit}"
    if view.order == RANDOM:
        places = ", ".join(map(str, _drawn(version, view))) or "null"
        return (
            f"select {names} from (select *, row_number() over (order by batch, row) - 1 as place from {decided} "  # noqa: S608
            f"where {group}) where place in ({places}) order by place"
        )
    best = f"reward desc nulls last, {names}"
    worst = "reward asc nulls last, " + ", ".join(f"{name} desc" for name in TIE_BREAK)
    if view.order == NEAREST:
        budget = f"case when corpus in (select budget from {cuts}) then corpus else '*' end"  # noqa: S608
        cut = f"(select cut from {cuts} where budget = {budget})"  # noqa: S608
        rest = worst if view.group == KEPT else best
        return (
            f"select {names} from {decided} where {group} "  # noqa: S608
            f"order by abs(reward::double - {cut}::double) nulls last, {rest} {limit}"
        )
    where = f"{group} and {_behind(view.after)}" if view.after is not None else group
    return f"select {names} from {decided} where {where} order by {best if view.order == BEST else worst} {limit}"  # noqa: S608


class Part:
    """One corpus in one ranked list, as a version takes it."""

    def __init__(self, version: Version, row: dict[str, Any]) -> None:
        self.version, self.row = version, row  # of LISTS
        self.artifact = version.ranked_list(row["batch"])
        cut = version.cuts.row(by_predicate=pl.col("budget") == row["budget"], named=True)
        self.cut: float | None = cut["cut"]
        self.tied: bool = cut["tied_at_cut"] > 0

    def members(self, group: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions of the group's rows, rising; rewards (float64, NaN for none) unless they are a stretch."""
        if group in reasons.OF_ROW:
            return self._refused(group)
        if group in reasons.OF_CAP:
            found = self.capped(group)
            return found["row"].to_numpy(), found["reward"].cast(pl.Float64).to_numpy()
        places, capped = np.arange(*self.stretch(group), dtype=np.int64), self.capped()
        return (np.setdiff1d(places, capped["row"].to_numpy()) if capped.height else places), None

    def count(self, group: str) -> int:
        """How many rows the group has."""
        if group in _LISTED:
            return len(self.members(group)[0])
        low, high = self.stretch(group)
        return high - low - len(self._capped_in(low, high))

    def drawn(self, group: str, numbers: np.ndarray) -> np.ndarray:
        """Positions of the group's rows with these rising numbers, from 0."""
        if not len(numbers):
            return numbers
        if group in _LISTED:
            return self.members(group)[0][numbers]
        low, high = self.stretch(group)
        capped = self._capped_in(low, high)
        before = capped - low - np.arange(len(capped))  # rows of the group before each capped one
        return low + numbers + np.searchsorted(before, numbers, side="right")

    def _capped_in(self, low: int, high: int) -> np.ndarray:
        rows = self.capped()["row"].to_numpy()
        return rows[(rows >= low) & (rows < high)]

    def stretch(self, group: str) -> tuple[int, int]:
        """The rows [low, high) that are kept, or have a reason of the cut, capped ones among them."""
        start = self.row["start"]
        low, high = start + self.row["taken"], start + self.row["eligible"]
        if group == KEPT:
            return start, low
        if (self.cut is None) != (group == reasons.NO_BUDGET):
            return low, low
        if self.cut is None:
            return low, high
        tied = low
        if self.tied:
            tied = high - len(self.behind(np.arange(low, high, dtype=np.int64), (self.cut, _LAST, "", "", 0)))
        return (low, tied) if group == reasons.TIED_AT_CUT else (tied, high)

    def capped(self, reason: str | None = None) -> pl.DataFrame:
        """Rows of the part that a cap takes away (CAPPED), in their order."""
        found = self.version.capped.filter(batch=self.row["batch"], corpus=self.row["corpus"])
        return (found if reason is None else found.filter(reason=reason)).sort("row")

    def read(self, places: np.ndarray) -> pl.DataFrame:
        """The rows at these rising positions, with `batch`, `row` and the `cut` of their budget."""
        if not len(places):
            return pl.DataFrame(schema=_SCHEMA)
        with closing(Rows(self.artifact, _READ)) as rows:
            read = rows.at(places)
        return read.select(
            pl.lit(self.row["batch"]).alias("batch"), "row", *_READ, pl.lit(self.cut, pl.Float64).alias("cut")
        )

    def behind(self, places: np.ndarray, after: Key) -> np.ndarray:
        """The positions whose rows stand behind a place of the order from best to worst."""
        low, high, wanted = 0, len(places), _rank(after)
        with closing(Rows(self.artifact, ["reward", *TIE_BREAK])) as rows:

            def rank(at: int) -> tuple[float, str, str, str, int]:
                return _rank(rows.slice(int(places[at]), int(places[at]) + 1).select("reward", *TIE_BREAK).row(0))

            while high > low and places[high - 1] - places[low] >= ROW_GROUP_ROWS:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if rank(middle) <= wanted else (low, middle)
            if high > low:
                first = int(places[low])
                near = rows.slice(first, int(places[high - 1]) + 1).select("reward", *TIE_BREAK)
                low = bisect_right(range(high), wanted, low, key=lambda at: _rank(near.row(int(places[at]) - first)))
        return places[low:]

    def _refused(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        if not self.artifact.facts["reasons"].get(group):
            return np.zeros(0, np.int64), np.zeros(0)
        start = self.row["start"]
        with closing(Rows(self.artifact, ["reason", "reward"])) as rows:
            tail = rows.slice(start + self.row["eligible"], start + self.row["rows"]).filter(reason=group)
        return tail["row"].to_numpy(), tail["reward"].cast(pl.Float64).fill_null(float("nan")).to_numpy()


_SCHEMA = {
    "batch": pl.String,
    "row": pl.Int64,
    **dict.fromkeys(TIE_BREAK, pl.String),
    "caption_index": pl.Int32,
    "corpus": pl.String,
    "reward": pl.Float32,
    "image_offset": pl.Int64,
    "image_length": pl.Int64,
    "cut": pl.Float64,
}


def _drawn(version: Version, view: View) -> list[int]:
    """Places among the group's pairs in the order of (batch, row)."""
    if view.order != RANDOM:
        return []
    total = size(version, view.group)
    return sorted(random.Random(view.seed).sample(range(total), min(view.limit, total)))


def _drawn_of(counts: Sequence[int], drawn: Sequence[int]) -> list[np.ndarray]:
    """The drawn ones of rows that follow each other, by their number in each part."""
    ends, rising = np.cumsum([0, *counts], dtype=np.int64), np.array(drawn, np.int64)
    return [rising[slice(*np.searchsorted(rising, ends[at : at + 2]))] - ends[at] for at in range(len(counts))]


def _candidates(part: Part, view: View) -> np.ndarray:
    """Positions of a part that may be in the view, in which its `limit` first certainly are."""
    places, rewards = part.members(view.group)
    if view.after is not None:
        places = part.behind(places, view.after)
    if view.order == BEST:
        return places[: view.limit]
    if rewards is None:  # contiguous: falling towards the cut, and away from it
        backwards = view.order == WORST or view.group == KEPT
        return places[-view.limit :] if backwards else places[: view.limit]
    if view.order == WORST:
        known = int(np.count_nonzero(~np.isnan(rewards)))
        return np.union1d(places[max(0, known - view.limit) : known], places[-view.limit :])
    far = np.abs(rewards - (np.nan if part.cut is None else part.cut))
    return np.sort(places[np.argsort(far, kind="stable")[: view.limit]])


def _sorted(frame: pl.DataFrame, view: View) -> pl.DataFrame:
    backwards = view.order == WORST or (view.order == NEAREST and view.group == KEPT)
    by: list[Any] = ["reward", *TIE_BREAK]
    descending = [not backwards, *[backwards] * len(TIE_BREAK)]
    if view.order == RANDOM:
        by, descending = ["batch", "row"], [False, False]
    if view.order == NEAREST:
        by, descending = [(pl.col("reward").cast(pl.Float64) - pl.col("cut")).abs(), *by], [False, *descending]
    return frame.sort(by, descending=descending, nulls_last=True)


def _rank(key: Sequence[Any]) -> tuple[float, str, str, str, int]:
    reward, *rest = key
    return (float("inf") if reward is None else -reward, *rest)


def _behind(after: Key) -> str:
    reward, pair_id, shard, key, at = after
    place = "'infinity'" if reward is None else repr(-reward)
    literals = f"{place}::double, {_quoted(pair_id)}, {_quoted(shard)}, {_quoted(key)}, {at}"
    return f"(coalesce(-reward::double, 'infinity'::double), {', '.join(TIE_BREAK)}) > ({literals})"


def _quoted(text: str) -> str:
    """A literal of DuckDB's; what a person could not see or copy is given by its bytes."""
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return "decode('" + "".join(f"\\x{byte:02X}" for byte in text.encode()) + "'::blob)"
