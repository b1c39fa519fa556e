"""Two reward models on the same held-out comparisons: the difference, paired, with its interval.

What belongs here: the figure. What does not: which images are held out for both, and what the figure
must be (`promotion.py`).
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from compalign_dagster.reward.data import JudgedImage, TrainingData, judged_images
from compalign_dagster.reward.loading import ImageLoader, loader_for
from compalign_dagster.reward.metrics import score_rows
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.statistics import bootstrap_mean

_CACHE_MIB = 256


def compare(
    model: RewardModel, other: RewardModel, data: TrainingData, images: Collection[str], *, seed: int
) -> dict[str, Any]:
    """Preference accuracy of `model` minus that of `other` on the judged images of these ids, as JSON values.

    `gain` is an estimate `{value, low, high, n}` over untied comparisons, its interval drawn over images;
    without any, its values are None. Images that do not decode are left out.
    """
    wanted = set(images)
    found = [image for image in judged_images(data, "test") if image.image_id in wanted and image.better]
    loaders = [loader_for(network, data.shards, _CACHE_MIB) for network in (model, other)]
    for loader in loaders:
        usable = loader.usable(image.place for image in found)
        found = [image for image in found if image.place in usable]
    gain = _right(model, loaders[0], found) - _right(other, loaders[1], found)
    owner = np.repeat(np.arange(len(found)), [len(image.better) for image in found])
    return {"gain": bootstrap_mean(gain, owner, seed=seed).as_dict(), "images": len(found)}


def _right(model: RewardModel, loader: ImageLoader, images: list[JudgedImage]) -> np.ndarray:
    """1 for each untied comparison that the model's rewards decide as people did, else 0; float64 [P]."""
    if not images:
        return np.zeros(0)
    sizes = [len(image.captions) for image in images]
    texts = [text for image in images for text in image.captions]
    reward = score_rows(model, loader, images, np.repeat(np.arange(len(images)), sizes), texts)["reward"]
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    better = np.array([start + at for start, image in zip(first, images, strict=True) for at in image.better])
    worse = np.array([start + at for start, image in zip(first, images, strict=True) for at in image.worse])
    return (reward[better] > reward[worse]).astype(np.float64)
