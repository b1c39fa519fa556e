"""Intervals, rank correlations, agreement and calibration: how sure a figure is.

What belongs here: statistics of plain arrays. What does not: where the arrays come from. Only numpy is
imported with the module, because a bare GPU machine that trains imports it too.

A statistic that is to be drawn many times is a function of row weights: float64 [B, N] (how often each
row was drawn, for B draws at once) to float64 [B]. `Bootstrap` draws images once for all figures, so that
the difference of two scorers is paired, and no figure sorts its scores more than once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def most_wrong(wrong: int, of: int) -> float:
    """The largest share, 0 to 1, that `wrong` of a random sample of `of` leaves possible at 95 % (one-sided).

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    from scipy.stats import beta

    return 1.0 if wrong >= of else float(beta.ppf(_LEVEL, wrong + 1, of - wrong))


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


@dataclass(frozen=True)
class Sampled:
    """A figure and its value in every draw of a `Bootstrap`, float64 [R]."""

    value: float
    draws: np.ndarray
    n: int

    def minus(self, other: "Sampled") -> "Sampled":
        """The paired difference; both figures must come from one `Bootstrap`."""
        return Sampled(self.value - other.value, self.draws - other.draws, min(self.n, other.n))

    def estimate(self) -> Estimate:
        """The figure with its percentile interval; draws in which it is undefined are left out."""
        draws = self.draws[np.isfinite(self.draws)]
        if not math.isfinite(self.value) or not len(draws):
            return Estimate(self.value, math.nan, math.nan, self.n)
        low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Estimate(self.value, float(low), float(high), self.n)

    def as_dict(self) -> dict[str, float | int | None]:
        """`Estimate.as_dict` of the estimate."""
        return self.estimate().as_dict()


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


class Bootstrap:
    """One set of draws of whole groups (images), shared by every figure of a table.

    Source: Efron and Tibshirani (1993), as `bootstrap_over`, of which this is the fast form.
    """

    def __init__(self, groups: int, *, resamples: int = 1000, seed: int) -> None:
        generator = np.random.default_rng(seed)
        groups = max(groups, 1)
        shares = np.full(groups, 1 / groups)
        self._times = generator.multinomial(groups, shares, size=resamples).astype(np.float64)

    def figure(self, statistic: Callable[[np.ndarray], np.ndarray], group: np.ndarray) -> Sampled:
        """`statistic` of rows of which row n belongs to group `group[n]` (int64 [N]); NaN without rows."""
        count = len(group)
        resamples = len(self._times)
        if not count:
            return self.nothing()
        block = max(1, _BLOCK // count)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(np.ones((1, count)))[0])
            draws = [statistic(self._times[at : at + block, group]) for at in range(0, resamples, block)]
        return Sampled(value, np.concatenate(draws), count)

    def nothing(self) -> Sampled:
        """A figure that cannot be measured: NaN in every draw, of no rows."""
        return Sampled(math.nan, np.full(len(self._times), math.nan), 0)


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The weighted mean of `values` [N], as a function of weights."""
    values = _finite(values)
    return lambda weights: weights @ values / weights.sum(1)


class Concordance:
    """How scores [N] order rows that have few levels [N], for any weights: rank correlations and AUC.

    Rows are counted into a table of distinct scores by levels, once; a draw changes only its counts.
    Levels with more than 64 different values are rounded to 64 equal steps. Raises `ValueError` for NaN.
    Source: Kendall, Rank Correlation Methods (1948); Stuart, Biometrika 40 (1953) for tau-c.
    """

    def __init__(self, scores: np.ndarray, levels: np.ndarray) -> None:
        values, tie = np.unique(_finite(scores), return_inverse=True)
        level = _codes_of(_finite(levels))
        self._shape = len(values), int(level.max(initial=0)) + 1
        cell = tie * self._shape[1] + level
        self._order = np.argsort(cell, kind="stable")
        self._cells, self._starts = np.unique(cell[self._order], return_index=True)

    def tau_c(self, weights: np.ndarray) -> np.ndarray:
        """Stuart's tau-c, [B]; what is reported on Flickr8k-Expert (CLIPScore, Hessel et al. 2021)."""
        table = self._table(weights)
        total = table.sum((1, 2))
        fewest = np.minimum((table.sum(2) > 0).sum(1), (table.sum(1) > 0).sum(1))
        return _defined(2 * _order_surplus(table) * fewest / (total**2 * (fewest - 1)), fewest > 1)

    def tau_b(self, weights: np.ndarray) -> np.ndarray:
        """Kendall's tau-b, [B]."""
        table = self._table(weights)
        pairs = _pairs(table.sum((1, 2)))
        untied = (pairs - _pairs(table.sum(2)).sum(1)) * (pairs - _pairs(table.sum(1)).sum(1))
        return _defined(_order_surplus(table) / np.sqrt(np.maximum(untied, 0)), untied > 0)

    def spearman(self, weights: np.ndarray) -> np.ndarray:
        """Spearman's rank correlation, [B]."""
        table = self._table(weights)
        row, column = _ranks(table.sum(2)), _ranks(table.sum(1))
        total = table.sum((1, 2))
        row -= (total[:, None] + 1) / 2
        column -= (total[:, None] + 1) / 2
        together = (row * (table @ column[:, :, None])[:, :, 0]).sum(1)
        spread = (table.sum(2) * row**2).sum(1) * (table.sum(1) * column**2).sum(1)
        return _defined(together / np.sqrt(spread), spread > 0)

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Chance that a row of the upper of two levels scores above one of the lower, [B]; ties count half."""
        if self._shape[1] != 2:
            return np.full(len(weights), math.nan)
        table = self._table(weights)
        pairs = table.sum(1).prod(1)
        return _defined((_order_surplus(table) / pairs + 1) / 2, pairs > 0)

    def _table(self, weights: np.ndarray) -> np.ndarray:
        """Weights by distinct score and level, [B, T, K]."""
        table = np.zeros((len(weights), self._shape[0] * self._shape[1]))
        table[:, self._cells] = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return table.reshape(len(weights), *self._shape)


_MOST_LEVELS = 64
_BLOCK = 100_000  # rows times draws in memory at once


def _codes_of(levels: np.ndarray) -> np.ndarray:
    values, codes = np.unique(levels, return_inverse=True)
    if len(values) <= _MOST_LEVELS:
        return codes
    share = (levels - levels.min()) / np.ptp(levels)
    return np.minimum((share * _MOST_LEVELS).astype(np.int64), _MOST_LEVELS - 1)


def _order_surplus(table: np.ndarray) -> np.ndarray:
    """Concordant minus discordant pairs of a table [B, T, K] whose axes both rise."""
    below = np.cumsum(table, axis=1) - table  # of lower score, by level
    upto = np.cumsum(below, axis=2)
    return (table * (2 * upto - below - upto[:, :, -1:])).sum((1, 2))


def _pairs(count: np.ndarray) -> np.ndarray:
    return count * (count - 1) / 2


def _ranks(count: np.ndarray) -> np.ndarray:
    """Mid-ranks of tied blocks [B, T] of these sizes."""
    return np.cumsum(count, axis=1) - count + (count + 1) / 2


def _defined(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, values, math.nan)


def within_groups(score: np.ndarray, upper: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of an upper and a lower row of one group: who wins (1, 0, tie 1/2) [P], and the group [P].

    `score` float64 [N], `upper` bool [N], `group` int64 [N]. The mean over pairs is the AUC within groups.
    """
    wins: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        high, low = score[rows[upper[rows]]], score[rows[~upper[rows]]]
        won = (high[:, None] > low) + 0.5 * (high[:, None] == low)
        wins.append(won.ravel())
        owner.append(np.full(won.size, group[rows[0]] if len(rows) else 0, np.int64))
    return np.concatenate(wins), np.concatenate(owner)


@dataclass(frozen=True)
class Bin:
    """A stretch of predicted probabilities: how many rows, what was predicted, what came true."""

    low: float
    high: float
    n: int
    predicted: float
    observed: Estimate

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "observed": self.observed.as_dict()}


def reliability(
    predicted: np.ndarray, happened: np.ndarray, group: np.ndarray, draws: Bootstrap, *, bins: int = 10
) -> tuple[Estimate, list[Bin]]:
    """Expected calibration error of probabilities [N] against outcomes (0 to 1) [N], and its bins.

    Bins hold about as many rows each; equal predictions share a bin. The error is the mean over rows of
    |mean predicted - mean observed| of the row's bin (Naeini, Cooper, Hauskrecht 2015). It is biased
    upward where bins are small, and so is its interval.
    """
    predicted, happened = _finite(predicted), _finite(happened)
    if not len(predicted):
        return NOTHING, []
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    of = np.searchsorted(edges, predicted, "right")
    gaps = [(of == at) * (predicted - happened) for at in np.unique(of)]

    def error(weights: np.ndarray) -> np.ndarray:
        return np.abs(weights @ np.stack(gaps, axis=1)).sum(1) / weights.sum(1)

    found = []
    for at in np.unique(of):
        rows = of == at
        observed = draws.figure(mean_of(happened[rows]), group[rows]).estimate()
        low, high = float(predicted[rows].min()), float(predicted[rows].max())
        found.append(Bin(low, high, int(rows.sum()), float(predicted[rows].mean()), observed))
    return draws.figure(error, group).estimate(), found


def kendall_tau_b(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of two score arrays [N]; corrects for ties in either. NaN when one is constant.

    For rows of few levels that are drawn many times, `Concordance` is faster.
    """
    from scipy.stats import kendalltau

    first, second = _finite(first), _finite(second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(kendalltau(first, second).statistic)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two score arrays [N]. NaN when one is constant."""
    from scipy.stats import rankdata

    first, second = _finite(first), _finite(second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError("NaN has no rank: leave such scores out before and count them")
    return values


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
