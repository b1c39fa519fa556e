"""What is counted of a ranked list: its candidates by reward, and by reward in groups.

What belongs here: bins, names of groups, the tables HISTOGRAM and GROUPS. What does not: the list (`ranked.py`), and
what a cut does with the counts (`cut.py`, `whatif.py`).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from compalign_dagster.selection.tables import GROUPS

DIMENSIONS = ("domain", "caption_length", "resolution")
BIN_BITS = 20
COARSE_BITS = 12
_CAPTION_LENGTHS = (16, 32, 64, 128, 256)  # characters; the last group is open
_SHORT_SIDES = (128, 256, 512, 1024)  # pixels


def bins(reward: np.ndarray) -> np.ndarray:
    """The leading 20 bits of float32 rewards, uint32, in the order of the numbers; finite rewards only."""
    bits = (reward.astype(np.float32) + np.float32(0.0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> (32 - BIN_BITS)).astype(np.uint32)


def histogram(candidates: pl.DataFrame) -> pl.DataFrame:
    """HISTOGRAM of a list's candidates, with their `bin`.

    Sums are added row by row in the list's order, so that they are the same on every machine.
    """
    keys = candidates.select("corpus", "bin")
    runs = keys.with_columns(run=pl.struct("corpus", "bin").rle_id().cast(pl.Int64))
    run = runs["run"].to_numpy()
    fit = candidates["human_fit"].to_numpy().astype(np.float64)
    known = ~np.isnan(fit)
    first = runs.unique("run", keep="first", maintain_order=True)
    return first.select("corpus", "bin").with_columns(
        pairs=pl.Series(np.bincount(run, minlength=first.height), dtype=pl.Int64),
        sum_reward=pl.Series(
            np.bincount(run, candidates["reward"].to_numpy().astype(np.float64), minlength=first.height),
            dtype=pl.Float64,
        ),
        sum_human_fit=pl.Series(np.bincount(run, np.where(known, fit, 0), minlength=first.height), dtype=pl.Float64),
        with_human_fit=pl.Series(np.bincount(run, known, minlength=first.height).astype(np.int64), dtype=pl.Int64),
    )


def groups(candidates: pl.DataFrame) -> pl.DataFrame:
    """GROUPS of a list's candidates, with their `bin`."""
    coarse = candidates.with_columns(coarse=pl.col("bin") // (1 << (BIN_BITS - COARSE_BITS)))
    counted = [
        coarse.group_by("corpus", "coarse", group=group_of(name))
        .agg(pairs=pl.len().cast(pl.Int64))
        .with_columns(dimension=pl.lit(name))
        for name in DIMENSIONS
    ]
    return pl.concat(counted).select(GROUPS.names).sort("corpus", "dimension", "group", "coarse")


def labelled(value: str | pl.Expr, edges: Sequence[int]) -> pl.Expr:
    """Numbers as the names of their range: `0000-0015`, `0016-0031`, ..., `1024-`; names sort like the numbers."""
    number = pl.col(value) if isinstance(value, str) else value
    ranges = zip((0, *edges), edges, strict=False)
    names = [pl.when(number < high).then(pl.lit(f"{low:04d}-{high - 1:04d}")) for low, high in ranges]
    return pl.coalesce([*names, pl.lit(f"{edges[-1]:04d}-")])


def group_of(dimension: str) -> pl.Expr:
    """The group that a row of a ranked list belongs to in a dimension of GROUPS."""
    if dimension == "domain":
        return pl.col("domain").fill_null("")
    if dimension == "caption_length":
        return labelled("caption_characters", _CAPTION_LENGTHS)
    return labelled(pl.min_horizontal("width", "height"), _SHORT_SIDES)
