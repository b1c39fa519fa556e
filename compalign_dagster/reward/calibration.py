"""From a reward to the probability that a person says the caption fits.

What belongs here: what people said as yes and no, and the fit of Platt (1999): sigmoid(slope * reward +
offset), two numbers, so that a few hundred held-out ratings suffice and the order of rewards never changes
(unless the slope is negative, which says that the reward is wrong). What does not: training, plots.
"""

import math
from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa

from compalign_dagster.annotation.tables import CRITERIA

MIDPOINT = 3.0  # of the contract's scale of 1 to 5: a rating at or above it is a yes
_STEPS = 100
_RIDGE = 1e-12


def single_ratings(
    ranks: pa.Table, images: Collection[str], criteria: Iterable[str] = CRITERIA
) -> list[tuple[str, str, str, float]]:
    """Every labeler's rating of every caption of these images: (image_id, caption_id, labeler, rating).

    The rating, 1 to 5, is the mean of those of `criteria` that the labeler gave; a caption without any is
    left out. Sorted.
    """
    names = list(criteria)
    found = []
    wanted = set(images)
    for row in ranks.select(["image_id", "caption_id", "labeler", *names]).to_pylist():
        given = [row[name] for name in names if row[name] is not None]
        if given and row["image_id"] in wanted:
            found.append((row["image_id"], row["caption_id"], row["labeler"], sum(given) / len(given)))
    return sorted(found)


def human_yes(ranks: pa.Table, images: Collection[str]) -> dict[tuple[str, str], tuple[float, int]]:
    """By (image_id, caption_id): the share of labelers who say yes, and how many rated; for `fit_calibration`."""
    votes: dict[tuple[str, str], list[bool]] = {}
    for image_id, caption_id, _, rating in single_ratings(ranks, images):
        votes.setdefault((image_id, caption_id), []).append(rating >= MIDPOINT)
    return {place: (sum(said) / len(said), len(said)) for place, said in votes.items()}


def fit_calibration(reward: np.ndarray, yes: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Slope and offset of P(yes) = sigmoid(slope * reward + offset), by Newton's method.

    `reward` [N] finite, `yes` [N] shares from 0 to 1, `weight` [N] answers behind each (default 1). Answers
    are smoothed as Platt (1999) does, so that separable data has a finite fit; steps are halved as in Lin,
    Lin and Weng, Machine Learning 68 (2007). (NaN, NaN) for fewer than two rows or rewards all alike.
    Raises `ValueError` for a share outside 0 to 1 or a reward that is not finite.
    """
    reward, yes = np.asarray(reward, np.float64), np.asarray(yes, np.float64)
    weight = np.ones(len(reward)) if weight is None else np.asarray(weight, np.float64)
    if not np.isfinite(reward).all() or not ((yes >= 0) & (yes <= 1)).all() or not (weight >= 0).all():
        raise ValueError("calibration needs finite rewards, shares of yes from 0 to 1 and weights of at least 0")
    if len(reward) < 2 or np.ptp(reward) == 0 or not weight.sum():
        return math.nan, math.nan
    positive, negative = float(weight @ yes), float(weight @ (1 - yes))
    target = yes * (positive + 1) / (positive + 2) + (1 - yes) / (negative + 2)
    centre, scale = reward.mean(), reward.std()  # Newton's steps on comparable scales
    slope, offset = _newton((reward - centre) / scale, target, weight, math.log((positive + 1) / (negative + 1)))
    return slope / scale, offset - slope * centre / scale


def probability(reward: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """P(a person says it fits), float64 [N]; NaN where the calibration is."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -(slope * np.asarray(reward, np.float64) + offset)))


def _newton(x: np.ndarray, target: np.ndarray, weight: np.ndarray, offset: float) -> tuple[float, float]:
    found = np.array([0.0, offset])
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(parameters: np.ndarray) -> float:
        score = design @ parameters
        return float(weight @ (np.logaddexp(0, score) - target * score))

    before = loss(found)
    for _ in range(_STEPS):
        p = probability(x, found[0], found[1])
        gradient = design.T @ (weight * (p - target))
        curvature = design.T @ (design * (weight * p * (1 - p))[:, None]) + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        share = 1.0
        while share > 1e-10 and loss(found - share * step) > before - 1e-4 * share * float(gradient @ step):
            share /= 2
        after = loss(found - share * step)
        if before - after <= 1e-12 * max(1.0, abs(before)):
            break
        found, before = found - share * step, after
    return float(found[0]), float(found[1])
