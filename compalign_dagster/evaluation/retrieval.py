"""Retrieval figures: how often the right caption or image is among the first k.

What belongs here: ranks from similarities, recall with intervals, comparisons between arms. What does
not: where similarities come from.

A retrieved caption is right when it reads like one of the image's own captions, a retrieved image when
one of its captions reads like the query: test sets repeat captions, and nothing tells such copies apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compalign_dagster.statistics import bootstrap_mean, bootstrap_over

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")


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


def retrieval_ranks(similarity: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Ranks of both directions from similarity and right answers [images, captions], by `DIRECTIONS`."""
    return {"image_to_text": ranks(similarity, right), "text_to_image": ranks(similarity.T, right.T)}


def recall(found: Mapping[str, np.ndarray], image_of: np.ndarray, *, seed: int) -> dict[str, Any]:
    """R@k of ranks [seeds, queries] per direction: `{direction: {"R@1": {value, low, high, n}, ...}}`.

    The value is the mean over training seeds and queries, the interval a bootstrap over test images,
    `seed_std` the deviation between training seeds. `n` counts queries.
    """
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        rank = np.atleast_2d(found[direction])
        groups = _images(direction, rank.shape[1], image_of)
        figures[direction] = {}
        for k in RECALL_AT:
            hits = rank < k
            spread = float(hits.mean(1).std(ddof=1)) if len(hits) > 1 else None
            estimate = bootstrap_mean(hits.mean(0), groups, seed=seed).as_dict()
            figures[direction][f"R@{k}"] = {**estimate, "seed_std": spread}
    return figures


def difference(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], image_of: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """`one` minus `other` in R@k, on the same queries, in the layout of `recall`.

    Test images and training seeds are drawn again, both arms on the same images; the seeds of the two
    arms are drawn apart, for a seed has no counterpart in the other arm.
    """
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        first, second = np.atleast_2d(one[direction]), np.atleast_2d(other[direction])
        groups = _images(direction, first.shape[1], image_of)
        figures[direction] = {
            f"R@{k}": _paired(first < k, second < k, groups, seed).as_dict() for k in RECALL_AT
        }
    return figures


def _paired(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int):  # noqa: ANN202
    generator = np.random.default_rng(seed)
    whole = [True]  # the first call is the figure itself, on all seeds

    def statistic(rows: np.ndarray) -> float:
        return float(first[_draw(first)].mean(0)[rows].mean() - second[_draw(second)].mean(0)[rows].mean())

    def _draw(hits: np.ndarray) -> np.ndarray:
        return generator.integers(0, len(hits), len(hits))

    del whole
    return bootstrap_over(groups, statistic, seed=seed)


def _images(direction: str, queries: int, image_of: np.ndarray) -> np.ndarray:
    return np.arange(queries) if direction == "image_to_text" else np.asarray(image_of)
