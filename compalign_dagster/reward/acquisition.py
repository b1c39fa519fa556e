"""Which pairs of captions to ask people about next: those whose answers would say most of the reward.

Plain arrays in, places out. What does not belong here: the posterior (`uncertainty.py`), writing out what is asked.

An answer about two captions tells the last layer's weights some 1/2 log(1 + p (1 - p) variance of the difference): what
Houlsby et al. 2011 (arXiv 1112.5745) ask for, to second order. Pairs are taken greedily, each lowering what the others
are still worth, so that a batch does not ask one thing many times.
"""

from collections import Counter

import numpy as np


def most_informative(
    differences: np.ndarray,
    rewards: np.ndarray,
    image: np.ndarray,
    factor: np.ndarray,
    *,
    count: int,
    most_per_image: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Places of at most `count` pairs, int64 [C], the most informative first; no pair twice.

    Args:
        differences: features of one caption minus those of the other, [P, K].
        rewards: the differences of their rewards, [P].
        image: the image of each pair, int64 [P].
        factor: of the covariance of the last layer's weights, [K, K] (`Posterior.factor`).
        count: how many may be asked.
        most_per_image: how many of one image; fewer pairs come back where there are not enough images.
        seed: of the order among equals.

    Raises `ValueError` for a posterior that was not fitted.
    """
    if not np.isfinite(factor).all():
        raise ValueError("the posterior was not fitted: train with held-out images")
    order = np.random.default_rng(seed).permutation(len(rewards))
    rows = np.asarray(differences, np.float64)[order] @ np.asarray(factor, np.float64)
    weight = _variance_of_answer(np.asarray(rewards, np.float64)[order])
    open_ = np.ones(len(rows), bool)
    asked: Counter[int] = Counter()
    chosen: list[int] = []
    while len(chosen) < count and open_.any():
        worth = np.where(open_, weight * (rows**2).sum(1), -1.0)
        best = int(worth.argmax())
        chosen.append(int(order[best]))
        open_[best] = False
        of = int(image[order[best]])
        asked[of] += 1
        if asked[of] == most_per_image:
            open_ &= image[order] != of
        rows = _after(rows, rows[best], weight[best])
    return np.array(chosen, np.int64)


def _variance_of_answer(rewards: np.ndarray) -> np.ndarray:
    """How open the answers are, p (1 - p), that these differences of rewards predict; nothing of a foregone one."""
    return 1 / (2 + np.exp(np.clip(rewards, -50, 50)) + np.exp(np.clip(-rewards, -50, 50)))


def _after(rows: np.ndarray, asked: np.ndarray, weight: float) -> np.ndarray:
    """All rows [P, K] in the measure of the covariance that is left after one answer."""
    variance = float(asked @ asked)
    if not variance:
        return rows
    shrunk = (1 - (1 + weight * variance) ** -0.5) / variance
    return rows - shrunk * np.outer(rows @ asked, asked)
