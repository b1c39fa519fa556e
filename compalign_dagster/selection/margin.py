"""The pairs that a cut is about: just above it, just below it, and the one at the cut of each fraction.

What belongs here: which pairs those are, their ranks, and the SQL that gives the same ones. What does not: what a cut
keeps in all (`whatif.py`), pictures and pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from compalign_dagster.selection import reasons
from compalign_dagster.selection.cut import Segment
from compalign_dagster.selection.hand import BudgetCut, Hand
from compalign_dagster.selection.policy import REST, Policy
from compalign_dagster.selection.select import TIE_BREAK, ranked_by
from compalign_dagster.selection.whatif import of_budget

COUNT = 48
STOP = 5  # percent between the cuts whose pairs are rungs
SIDES = ("above", "below", "rungs")
_READ = [*TIE_BREAK, "corpus", "reward", "human_fit", "image_offset", "image_length"]
_BEST = f"reward desc, {', '.join(TIE_BREAK)}"


@dataclass(frozen=True)
class Margin:
    """Pairs on both sides of a budget's cut, best first.

    Columns: RANKED's of `_READ`, `batch`, `row`, `rank` (from 0, among the budget's candidates that no cap takes away)
    and `kept_from` (the smallest fraction of the budget that keeps the pair, rounded as the policy rounds).
    """

    budget: str
    n: int  # pairs of the budget
    kept: int
    above: pl.DataFrame
    below: pl.DataFrame

    def sql(self, side: str) -> str:
        """The same pairs from the view `decided` of an audit database of the version."""
        rows = getattr(self, side)
        return ranks_sql(self.budget, rows["rank"].to_list())


def margin(hand: Hand, policy: Policy, count: int = COUNT) -> Margin:
    """The last `count` kept and the first `count` dropped candidates of the policy's largest budget."""
    name, found = largest(hand, policy)
    n = sum(hand.parts[at]["rows"] for at in found.parts)
    read = [
        _around(hand, at, segment, taken, count)
        for at, segment, taken in zip(
            found.parts, hand.segments(policy, found.parts), found.cut.taken, strict=True
        )
    ]  # fmt: skip
    ranked = ranked_by(pl.concat(read), "reward")
    above, below = ranked.filter("kept").tail(count), ranked.filter(~pl.col("kept")).head(count)
    kept = found.cut.kept
    return Margin(name, n, kept, _placed(above, kept - above.height, n), _placed(below, kept, n))


def rungs(hand: Hand, policy: Policy, budget: str) -> pl.DataFrame:
    """The last pair that a budget keeps at 5 %, 10 %, ... 100 %, each pair once, best first; columns as a margin's."""
    cuts = [hand.cut(of_budget(policy, budget, Decimal(at) / 100))[budget] for at in range(STOP, 101, STOP)]
    last = {found.cut.last[1:]: found.cut.kept - 1 for found in cuts if found.cut.last}
    ranks = pl.DataFrame(
        [(*key, rank) for key, rank in last.items()],
        schema={**dict.fromkeys(TIE_BREAK, pl.String), "caption_index": pl.Int32, "rank": pl.Int64},
        orient="row",
    )
    found = hand.version.find(ranks["pair_id"].to_list()).select("batch", "row", *_READ)
    n = sum(hand.parts[at]["rows"] for at in cuts[0].parts)
    return found.join(ranks, on=TIE_BREAK).sort("rank").with_columns(kept_from=_fraction(n))


def pairs(hand: Hand, policy: Policy, side: str) -> pl.DataFrame:
    """The pairs of one of `SIDES`, columns as a margin's."""
    if side == "rungs":
        return rungs(hand, policy, largest(hand, policy)[0])
    return getattr(margin(hand, policy), side)


def ranks_sql(budget: str, ranks: Sequence[int]) -> str:
    """The candidates of a budget at these ranks, best first, from the view `decided` of an audit database."""
    refused = ", ".join(f"'{name}'" for name in reasons.OF_CUT)
    quoted = budget.replace("'", "''")
    corpora = "corpus not in (select budget from cuts)" if budget == REST else f"corpus = '{quoted}'"
    places = ", ".join(map(str, ranks)) or "null"
    return (
        f"select {', '.join(TIE_BREAK)} from (select *, row_number() over (order by {_BEST}) - 1 as place "  # noqa: S608
        f"from decided where {corpora} and (reason is null or reason in ({refused}))) "
        f"where place in ({places}) order by place"
    )


def largest(hand: Hand, policy: Policy) -> tuple[str, BudgetCut]:
    """The budget with most pairs, the first by name of equals, and its cut."""

    def size(item: tuple[str, Any]) -> int:
        return -sum(hand.parts[at]["rows"] for at in item[1].parts)

    return min(sorted(hand.cut(policy).items()), key=size)


def _around(hand: Hand, at: int, segment: Segment, taken: int, count: int) -> pl.DataFrame:
    """A part's last kept and first dropped candidates."""
    every = np.arange(segment.start, segment.start + segment.eligible, dtype=np.int64)
    places = np.setdiff1d(every, segment.capped, assume_unique=True)
    edge = int(np.searchsorted(places, segment.start + taken))
    with hand.rows(at, _READ) as rows:
        frame = rows.at(places[max(0, edge - count) : edge + count])
    return frame.with_columns(kept=pl.col("row") < segment.start + taken, batch=pl.lit(hand.parts[at]["batch"]))


def _placed(rows: pl.DataFrame, first: int, n: int) -> pl.DataFrame:
    ranked = rows.with_columns(rank=pl.int_range(first, first + pl.len(), dtype=pl.Int64))
    return ranked.with_columns(kept_from=_fraction(n)).drop("kept")


def _fraction(n: int) -> pl.Expr:
    """Of `n` pairs, k are kept from (k - 1/2) / n on."""
    return (pl.col("rank").cast(pl.Float64) + 0.5) / max(n, 1)
