"""Intervals, rank correlations and agreement: how sure a figure is.

What belongs here: statistics of plain arrays. What does not: where the arrays come from. Only numpy is
imported with the module, because a bare GPU machine that trains imports it too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and the number of observations behind it; NaN where undefined."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON values; what is undefined is None."""
        return {
            "value": _json(self.value),
            "low": _json(self.low),
            "high": _json(self.high),
            "n": self.n,
        }


def bootstrap_over(
    groups: np.ndarray, statistic: Callable[[np.ndarray], float], *, resamples: int = 1000, seed: int
) -> Estimate:
    """Percentile interval of a statistic when whole groups are drawn again (cluster bootstrap).

    `groups` [N] holds the group (image) of every row, `statistic` gets row indices, int64 [M], in which
    the rows of a group drawn twice appear twice. Rows of one image are not independent; drawing images
    keeps that. Draws for which the statistic is NaN are left out. `n` is N.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    rows = np.arange(len(groups))
    if not len(rows):
        return Estimate(math.nan, math.nan, math.nan, 0)
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(np.asarray(groups)[order], return_index=True, return_counts=True)
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for at in range(resamples):
        drawn = generator.integers(0, len(starts), len(starts))
        size = sizes[drawn]
        first = np.repeat(starts[drawn] - np.concatenate(([0], np.cumsum(size)[:-1])), size)
        draws[at] = statistic(order[first + np.arange(int(size.sum()))])
    value = float(statistic(rows))
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(draws):
        return Estimate(value, math.nan, math.nan, len(rows))
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(rows))


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, *, resamples: int = 1000, seed: int) -> Estimate:
    """`bootstrap_over` for the mean of `values` [N], fast: groups are summed once and then drawn."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    _, code = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(code, weights=values), np.bincount(code)
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for at in range(resamples):
        drawn = generator.integers(0, len(sums), len(sums))
        draws[at] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def preference_accuracy(better: np.ndarray, worse: np.ndarray) -> float:
    """Share of comparisons in which `better` [N] scores above `worse` [N]; a tie of scores is wrong."""
    better, worse = _finite(better), _finite(worse)
    return float(np.mean(better > worse)) if len(better) else math.nan


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive scores above a negative, a tie counting half (Mann-Whitney U / nm)."""
    positive, negative = _finite(positive), np.sort(_finite(negative))
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).mean() / (2 * len(negative)))


def kendall_tau_b(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of two score arrays [N]; corrects for ties in either. NaN when one is constant."""
    return _tau(first, second, "b")


def kendall_tau_c(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's (Stuart's) tau-c of two score arrays [N]: for scales of different lengths.

    The figure that work on Flickr8k-Expert reports (CLIPScore, Hessel et al. 2021).
    """
    return _tau(first, second, "c")


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two score arrays [N]. NaN when one is constant."""
    from scipy.stats import rankdata

    first, second = _finite(first), _finite(second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _tau(first: np.ndarray, second: np.ndarray, variant: str) -> float:
    from scipy.stats import kendalltau

    first, second = _finite(first), _finite(second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(kendalltau(first, second, variant=variant).statistic)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError("NaN has no rank: leave such scores out before and count them")
    return values


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
