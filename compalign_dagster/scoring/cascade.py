"""A cascade: a cheap score turns down what the reward would surely not keep, the reward decides the rest.

Only rejection is cheap. A kept pair carries its reward into the dataset, so clear keeps are scored like
everything near the cut, and exactly as many pairs are kept as without a cascade. What that may change is
bounded before (`plan`, on pairs that both have scored) and measured after (`audit`, on rejected ones).
A plan is for one budget of a policy: budgets that each stay within a bound stay within it together.

What belongs here: the arithmetic on plain arrays. What does not: computing a score, artifacts, the policy
(its fraction comes as an argument).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compalign_dagster.errors import InputError
from compalign_dagster.statistics import Estimate

BOUND = 0.01  # share of decisions that may differ from those of scoring everything
_CONFIDENCE = 0.95
_SHORTAGE = 1e-6  # risk that fewer pairs get a reward than are to be kept


@dataclass(frozen=True)
class Plan:
    """From which cheap score on a pair gets a reward, and what that does to the sample it was made on."""

    reject_below: float | None  # pairs with a smaller cheap score get no reward; None: do not use a cascade
    passes: float  # share of pairs that get a reward, 0 to 1
    wrong: Estimate  # share of decisions that differ from full scoring; `high` is the limit that was held to the bound
    fraction: float
    bound: float
    reason: str  # why it is as it is, in words

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "wrong": self.wrong.as_dict()}


@dataclass(frozen=True)
class Drawn:
    """Rejected pairs of which one share was audited."""

    rejected: int  # without a reward
    audited: int  # with one, chosen at random
    wrong: int  # of the audited: those whose reward reaches the cut

    @classmethod
    def of(cls, reward: np.ndarray, cut: float | np.ndarray, rejected: int) -> "Drawn":
        """From rewards of audited pairs [M] and the lowest reward that was kept, of all or of each, [M].

        Raises `InputError` for rewards that are not finite, and for a cut that is NaN.
        """
        reward, cut = np.asarray(reward, np.float64), np.asarray(cut, np.float64)
        broken, unknown = int((~np.isfinite(reward)).sum()), int(np.isnan(cut).sum())
        if broken or unknown:
            raise InputError(
                "audit of a cascade",
                expected="finite rewards and a cut",
                found=f"{broken} rewards that are not finite, {unknown} cuts that are no numbers",
                remedy="Leave out pairs that scoring quarantines; give the lowest kept reward.",
            )
        return cls(rejected, len(reward), int((reward >= cut).sum()))


@dataclass(frozen=True)
class Audit:
    """What scoring a random part of the rejected pairs has shown of all decisions."""

    wrong: Estimate  # share of decisions
    passed: bool
    reason: str


def plan(cheap: np.ndarray, reward: np.ndarray, fraction: float, *, bound: float = BOUND) -> Plan:
    """The cheap score below which a pair may go without a reward.

    `cheap` [N] (NaN where there is none) and `reward` [N] are of pairs drawn at random, each on its own, from
    the crawl that `fraction` of is kept. A pair that is rejected and should have been kept changes two
    decisions: its own, and that of the pair that takes its place. With 95 % confidence, over draws of the
    sample, the share of changed decisions in the crawl is at most `bound`.

    How: the pairs above the crawl's cut are at most the binomial's upper limit among the sample's best, and
    what is rejected of those has a Clopper-Pearson upper limit; each at half the error. The share grows with
    the threshold, so the largest threshold within the limit needs no correction for having been chosen
    (Bates et al., Distribution-Free, Risk-Controlling Prediction Sets, 2021). Raises `InputError` for
    rewards that are not finite and for fractions and bounds outside 0 to 1.
    """
    cheap, reward = _checked(cheap, reward, fraction, bound)
    count = len(reward)
    limits = _upper_limits(count)
    most = int(np.searchsorted(limits, bound / 2, side="right")) - 1  # false rejects that still hold the bound
    if most < 0:
        return _unused(fraction, bound, count, f"{count:,} pairs are too few to promise {bound:.2%} of decisions")
    wanted = _certainly_covers(count, fraction, (1 - _CONFIDENCE) / 2)
    if wanted >= count:
        return _unused(fraction, bound, count, "nearly everything is kept")
    best = reward >= np.partition(reward, count - wanted)[count - wanted] if wanted else np.zeros(count, bool)
    enough = _certainly_covers(count, fraction, _SHORTAGE)
    threshold = _largest_threshold(cheap, best, most, most_rejected=count - enough)
    rejected = rejects(cheap, threshold)
    if not rejected.any():
        return _unused(fraction, bound, count, "no threshold rejects anything within the bound")
    false = int((rejected & best).sum())
    wrong = wrong_share(reward, rejected, fraction)
    low, _ = _interval(round(wrong * count / 2), count)
    return Plan(
        threshold,
        1 - float(rejected.mean()),
        Estimate(wrong, 2 * low, 2 * float(limits[false]), count),
        fraction,
        bound,
        f"rejects {rejected.mean():.1%} of {count:,} sampled pairs, {false} of them perhaps to be kept",
    )


def together(plans: Mapping[str, Plan], pairs: Mapping[str, int]) -> tuple[float, Estimate]:
    """Share of the crawl's pairs that get a reward, and of its decisions that differ, under one plan a budget.

    `pairs` are those of each budget. The interval is the mean of the budgets' own, which is wider than need be.
    """
    whole = sum(pairs[name] for name in plans) or 1
    share = {name: pairs[name] / whole for name in plans}
    value, low, high = (
        sum(share[name] * getattr(made.wrong, end) for name, made in plans.items()) for end in ("value", "low", "high")
    )
    passes = sum(share[name] * made.passes for name, made in plans.items())
    return passes, Estimate(value, low, high, sum(made.wrong.n for made in plans.values()))


def rejects(cheap: np.ndarray, reject_below: float | None) -> np.ndarray:
    """Which pairs go without a reward, bool [N]; never one without a cheap score (NaN), none without a threshold."""
    below = -math.inf if reject_below is None else reject_below
    return np.asarray(np.asarray(cheap, np.float64) < below)


def keeps(reward: np.ndarray, rejected: np.ndarray, count: int) -> np.ndarray:
    """The `count` best of the pairs that were not rejected, bool [N]; among equals the earlier.

    Rows must come in the order in which the selection breaks ties. `reward` of rejected pairs is not read.
    Raises `InputError` where fewer pairs than `count` have a reward: score the best of the rejected then.
    """
    rows = np.flatnonzero(~rejected)
    if len(rows) < count:
        raise InputError(
            "pairs that passed the cascade",
            expected=f"at least the {count:,} that are to be kept",
            found=f"{len(rows):,}",
            remedy="Plan the cascade on a sample of this crawl, for this keep fraction.",
        )
    found = np.zeros(len(reward), bool)
    found[rows[np.argsort(-np.asarray(reward, np.float64)[rows], kind="stable")[:count]]] = True
    return found


def wrong_share(reward: np.ndarray, rejected: np.ndarray, fraction: float) -> float:
    """Share of decisions that a cascade changes, where every pair has a reward: both ways, 0 to 1."""
    count = math.floor(fraction * len(reward) + 0.5)
    full = keeps(reward, np.zeros(len(reward), bool), count)
    ours = keeps(reward, rejected, min(count, int((~rejected).sum())))
    return float((full != ours).mean()) if len(reward) else 0.0


def audit(drawn: Sequence[Drawn], *, pairs: int, bound: float = BOUND) -> Audit:
    """Whether the decisions of a crawl are within the bound, from rewards of rejected pairs drawn at random.

    Pairs of which different shares were audited are judged apart and added up: together they are no random sample of
    what was rejected. Each part has its part of the error, so that the sum holds at 95 %. What reaches the cut counts
    as wrong; as wrong rejects lower the cut, that is never too few. Passes when the upper end of the interval is
    within the bound: too few audited pairs fail. Raises `InputError` for more rejected pairs than `pairs`.
    """
    drawn = [part for part in drawn if part.rejected]
    rejected, audited, wrong = (sum(getattr(part, of) for part in drawn) for of in ("rejected", "audited", "wrong"))
    if rejected > pairs:
        raise InputError(
            "audit of a cascade",
            expected="no more rejected pairs than pairs",
            found=f"{rejected} of {pairs}",
            remedy="Count both over the same shards.",
        )
    if not drawn:
        return Audit(Estimate(0.0, 0.0, 0.0, 0), True, "nothing was rejected")
    parts = [_changed(part, pairs, (1 - _CONFIDENCE) / 2 / len(drawn)) for part in drawn]
    value, low, high = (sum(ends) for ends in zip(*parts, strict=True))
    share = Estimate(value, low, min(1.0, high), audited)
    said = f"{wrong} of {audited:,} audited rejects reach the cut: at most {share.high:.2%} of decisions differ"
    return Audit(share, share.high <= bound, f"{said}, {bound:.2%} are allowed")


def _changed(part: Drawn, pairs: int, tail: float) -> tuple[float, float, float]:
    """Share of all decisions that a part of the rejects changes, and its interval: each wrong one changes two."""
    weight = 2 * part.rejected / pairs
    low, high = _interval(part.wrong, part.audited, tail)
    return weight * part.wrong / part.audited if part.audited else math.nan, weight * low, weight * high


def _checked(cheap: np.ndarray, reward: np.ndarray, fraction: float, bound: float) -> tuple[np.ndarray, np.ndarray]:
    cheap, reward = np.asarray(cheap, np.float64), np.asarray(reward, np.float64)
    if cheap.shape != reward.shape or cheap.ndim != 1 or not np.isfinite(reward).all():
        raise InputError(
            "sample for a cascade",
            expected="as many cheap scores as rewards, all rewards finite",
            found=f"{cheap.shape} and {reward.shape}, {int((~np.isfinite(reward)).sum())} rewards not finite",
            remedy="Leave out pairs that scoring quarantines.",
        )
    if not 0 <= fraction <= 1 or not 0 <= bound <= 1:
        raise InputError(
            "cascade",
            expected="a keep fraction and a bound from 0 to 1",
            found=f"{fraction} and {bound}",
            remedy="Write 0.01 for one per cent.",
        )
    return cheap, reward


def _upper_limits(count: int) -> np.ndarray:
    """Clopper-Pearson upper limits of a share for 0 to `count` events of `count`, at half the error; rising."""
    from scipy.stats import beta

    events = np.arange(count)
    return np.append(beta.ppf(1 - (1 - _CONFIDENCE) / 2, events + 1, count - events), 1.0)


def _interval(events: int, count: int, tail: float = (1 - _CONFIDENCE) / 2) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share of `events` in `count`, with an error of `tail` at either end."""
    from scipy.stats import beta

    low = float(beta.ppf(tail, events, count - events + 1)) if events else 0.0
    return low, float(beta.ppf(1 - tail, events + 1, count - events)) if events < count else 1.0


def _certainly_covers(count: int, fraction: float, error: float) -> int:
    """How many of the sample's best hold all of it that the best `fraction` of the crawl has, up to this error."""
    from scipy.stats import binom

    return int(binom.ppf(1 - error, count, fraction)) if fraction else 0


def _largest_threshold(cheap: np.ndarray, best: np.ndarray, most: int, *, most_rejected: int) -> float | None:
    """The largest cheap score of the sample below which at most `most` of the best lie, and pairs enough do not."""
    known = np.flatnonzero(~np.isnan(cheap))
    order = known[np.argsort(cheap[known], kind="stable")]
    values, first = np.unique(cheap[order], return_index=True)  # `first` pairs lie below each value
    below = np.concatenate([[0], np.cumsum(best[order])])[first]
    fits = np.flatnonzero((below <= most) & (first <= most_rejected))
    return float(values[fits[-1]]) if len(fits) else None


def _unused(fraction: float, bound: float, count: int, reason: str) -> Plan:
    return Plan(None, 1.0, Estimate(0.0, 0.0, 0.0, count), fraction, bound, f"not used: {reason}")
