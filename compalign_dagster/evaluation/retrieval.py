"""Retrieval figures: how often the right caption or image is among the first k.

What belongs here: ranks from similarities, recall with intervals, comparisons between arms. What does
not: where similarities come from.

A retrieved caption is right when it reads like one of the image's own captions, a retrieved image when
one of its captions reads like the query: test sets repeat captions, and nothing tells such copies apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compalign_dagster.statistics import Estimate

RECALL_AT = {"r1": 1, "r5": 5, "r10": 10}
DIRECTIONS = ("image_to_text", "text_to_image")
_RESAMPLES = 1000

Ranks = Mapping[str, np.ndarray]
"""By direction, int64 [training seeds, queries]: how many wrong answers come before the first right one."""


def right_answers(captions: Sequence[str], image_of: np.ndarray, images: int) -> np.ndarray:
    """Bool [images, captions]: whether a caption is right for an image, by text. `image_of` [captions]."""
    seen: dict[str, int] = {}
    text = np.array([seen.setdefault(" ".join(caption.lower().split()), len(seen)) for caption in captions])
    has = np.zeros((images, len(seen)), bool)
    has[image_of, text] = True
    return has[:, text]


def ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each row, how many wrong columns score at least as high as the best right one, int64 [rows].

    Ties count against: a model that gives every pair the same score finds nothing.
    """
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return ((similarity >= best) & ~right).sum(1)


def both_ways(similarity: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Ranks of both directions from similarity and right answers [images, captions], by `DIRECTIONS`."""
    return {"image_to_text": ranks(similarity, right), "text_to_image": ranks(similarity.T, right.T)}


def recall(found: Ranks, image_of: np.ndarray, *, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """R@1, R@5 and R@10 by direction: `{direction: {"r1": {value, low, high, n, seed_std}, ...}}`.

    A value is a share, 0 to 1, averaged over training seeds and queries; `n` counts queries. The interval
    is a bootstrap over test images and training seeds together; `seed_std` is the standard deviation
    between training seeds, None for one seed.
    """
    return {
        direction: {
            name: {
                **_bootstrap([found[direction] < k], _groups(found, direction, image_of), seed).as_dict(),
                "seed_std": _spread(found[direction] < k),
            }
            for name, k in RECALL_AT.items()
        }
        for direction in DIRECTIONS
    }


def difference(one: Ranks, other: Ranks, image_of: np.ndarray, *, seed: int) -> dict[str, dict[str, dict]]:
    """`one` minus `other`, in the layout of `recall`, on the same queries.

    The same test images are drawn for both; training seeds are drawn for each arm apart, because a seed
    has no counterpart in the other arm.
    """
    return {
        direction: {
            name: _bootstrap(
                [one[direction] < k, other[direction] < k], _groups(one, direction, image_of), seed
            ).as_dict()
            for name, k in RECALL_AT.items()
        }
        for direction in DIRECTIONS
    }


def _bootstrap(arms: Sequence[np.ndarray], groups: np.ndarray, seed: int) -> Estimate:
    """Mean of the hits [seeds, queries] of the first arm, less that of the second where there is one."""
    _, code, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = [np.stack([np.bincount(code, weights=row) for row in hits.astype(float)]) for hits in arms]
    generator = np.random.default_rng(seed)
    draws = np.empty((len(arms), _RESAMPLES))
    for at in range(_RESAMPLES):
        images = generator.integers(0, len(sizes), len(sizes))
        for arm, table in enumerate(sums):
            seeds = generator.integers(0, len(table), len(table))
            draws[arm, at] = table[seeds][:, images].sum() / (len(seeds) * sizes[images].sum())
    signs = np.array([1.0, -1.0])[: len(arms)]
    low, high = np.quantile(signs @ draws, [0.025, 0.975])
    value = float(signs @ np.array([hits.mean() for hits in arms]))
    return Estimate(value, float(low), float(high), len(groups))


def _groups(found: Ranks, direction: str, image_of: np.ndarray) -> np.ndarray:
    """The test image of every query of a direction."""
    queries = found[direction].shape[1]
    return np.arange(queries) if direction == "image_to_text" else np.asarray(image_of)


def _spread(hits: np.ndarray) -> float | None:
    return float(hits.mean(1).std(ddof=1)) if len(hits) > 1 else None
