"""Groups of pairs that a filter removes far more often than the rest: told with figures, decided by people.

A reward that dislikes short captions or small images is doing its work; one that removes a domain whole may
not be. What belongs here: comparing kept shares. What does not: counting them (`whatif.py`).
"""

from dataclasses import dataclass

import polars as pl

from compalign_dagster.selection.whatif import OTHERS, Outcome

LEAST_EXPECTED = 30
"""Kept pairs that a group must have at the overall share; below, chance alone could empty it."""


@dataclass(frozen=True)
class Unequal:
    """A group whose kept share is far from that of all candidates."""

    dimension: str
    group: str
    candidates: int
    kept: int
    overall: float  # kept share of all candidates, 0 to 1

    @property
    def share(self) -> float:
        """Kept share of the group, 0 to 1."""
        return self.kept / self.candidates

    def __str__(self) -> str:
        name = self.group or "none"
        return (
            f"{self.dimension} {name}: {self.kept:,} of {self.candidates:,} candidates kept ({self.share:.1%}), "
            f"{self.overall:.1%} of all"
        )


def unequal(outcome: Outcome, least: float) -> list[Unequal]:
    """Groups of which less than `least` times the overall share is kept, the farthest first.

    Groups in which fewer than `LEAST_EXPECTED` kept pairs would be expected are left out. Corpora are no groups
    here: a policy may give each a fraction of its own.
    """
    found = []
    groups = outcome.groups.filter(pl.col("dimension") != "corpus")
    for dimension, rows in groups.partition_by("dimension", as_dict=True).items():
        candidates, kept = int(rows["candidates"].sum()), int(rows["kept"].sum())
        if not candidates or not kept:
            continue
        overall = kept / candidates
        low = rows.filter(
            pl.col("group") != OTHERS,
            pl.col("candidates") * overall >= LEAST_EXPECTED,
            pl.col("kept") < pl.col("candidates") * overall * least,
        )
        found += [
            Unequal(str(dimension[0]), row["group"], row["candidates"], row["kept"], overall)
            for row in low.iter_rows(named=True)
        ]
    return sorted(found, key=lambda group: (group.share / group.overall, group.dimension, group.group))
