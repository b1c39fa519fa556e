"""The ranked lists of a version in hand, to be cut again and again by other policies.

What belongs here: cuts of those lists, and what is counted of them. What does not: making lists; sums of what a cut
keeps (`whatif.py`); pairs to look at (`margin.py`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from compalign_dagster.errors import InputError
from compalign_dagster.selection import caps
from compalign_dagster.selection.cut import Cut, Rows, Segment, find_cut
from compalign_dagster.selection.deciding import NO_BINS, bins_of, groups_of
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version

_READERS = 4  # threads that read histograms


class BudgetCut(NamedTuple):
    """Where one budget is cut."""

    parts: list[int]  # which of the hand's parts are of it
    k: int  # how many pairs it is to keep
    cut: Cut  # `taken` in the order of `parts`


class Hand:
    """A version's lists. A *part* is one corpus in one list, a row of LISTS."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.parts: list[dict[str, Any]] = version.lists.sort("batch", "start").to_dicts()
        self._capped: dict[Any, pl.DataFrame] = {}

    def cut(self, policy: Policy) -> dict[str, BudgetCut]:
        """The cut of each budget. Raises `InputError` for a policy whose rules need other lists."""
        self._require_same_rules(policy)
        found = {}
        for budget in sorted({policy.budget_of(part["corpus"]) for part in self.parts}):
            of = [at for at, part in enumerate(self.parts) if policy.budget_of(part["corpus"]) == budget]
            k = policy.count_of(budget, sum(self.parts[at]["rows"] for at in of))
            found[budget] = BudgetCut(of, k, find_cut(self.segments(policy, of), k))
        return found

    def segments(self, policy: Policy, of: Sequence[int]) -> list[Segment]:
        """Parts as `find_cut` takes them, under the policy's caps."""
        capped = self.capped(policy)
        return [
            Segment(
                self.version.ranked_list(self.parts[at]["batch"]),
                self.parts[at]["start"],
                self.parts[at]["eligible"],
                *self.bins[at],
                self.capped_rows(capped, at),
            )
            for at in of
        ]

    def capped(self, policy: Policy) -> pl.DataFrame:
        """What the policy's caps take away (CAPPED): the version's own where its caps are the same."""
        asked, theirs = caps.limits(policy), caps.limits(self.version.policy)
        if asked == theirs:
            return self.version.capped
        if asked not in self._capped:
            lists = {batch: self.version.ranked_list(batch) for batch in self.version.batches()}
            rows = self.version.shards.to_dicts()
            found = {kind: groups_of(self.version.store, rows, kind) for kind in caps.needed(policy)}
            groups = {kind: artifact for kind, artifact in found.items() if artifact is not None}
            self._capped[asked] = caps.capped(lists, policy, groups)
        return self._capped[asked]

    def capped_rows(self, capped: pl.DataFrame, at: int) -> np.ndarray:
        """The rows of a part that caps take away, rising, as positions in its list."""
        part = self.parts[at]
        rows = capped.filter(batch=part["batch"])["row"].to_numpy()
        return np.sort(rows[(rows >= part["start"]) & (rows < part["start"] + part["eligible"])])

    def rows(self, at: int, columns: Sequence[str]) -> "closing[Rows]":
        """The rows of a part's list, for a `with`."""
        return closing(Rows(self.version.ranked_list(self.parts[at]["batch"]), columns))

    def _require_same_rules(self, policy: Policy) -> None:
        mine, theirs = dict(policy.rules()), dict(self.version.policy.rules())
        if mine != theirs:
            raise InputError(
                "what-if",
                expected="the rules that the lists in hand were made under",
                found=f"other {', '.join(name for name in mine if mine[name] != theirs[name])}",
                remedy="Materialise filtered_dataset as a trial: rules are counted when lists are made.",
            )

    @cached_property
    def bins(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per part: its bins, falling, and the candidates in each."""
        batches = self.version.batches()
        with ThreadPoolExecutor(_READERS) as readers:
            read = readers.map(bins_of, [self.version.ranked_list(batch) for batch in batches])
            found = dict(zip(batches, read, strict=True))
        return [found[part["batch"]].get(part["corpus"], NO_BINS) for part in self.parts]

    @cached_property
    def candidates(self) -> pl.DataFrame:
        """Candidates of every group of GROUPS' dimensions: `dimension, group, candidates`, sorted."""
        found = self.group_files.group_by("dimension", "group").agg(candidates=pl.col("pairs").sum())
        return found.collect(engine="streaming").sort("dimension", "group")

    @cached_property
    def group_files(self) -> pl.LazyFrame:
        """GROUPS of all lists."""
        lists = (self.version.ranked_list(batch) for batch in self.version.batches())
        return pl.scan_parquet([artifact.fetch("groups.parquet") for artifact in lists])
